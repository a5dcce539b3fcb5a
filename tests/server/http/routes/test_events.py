"""A job's events over HTTP: pages, and streams that resume and end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import released
from clinic import Clinic
from taciturn.server.app import create_app
from taciturn.server.database import open_database
from taciturn.server.jobs.events import Events
from taciturn.wire.events import JobEvent, PlanEvent, Stage, StageEvent, StateEvent
from taciturn.wire.jobs import JobKind, JobState


@pytest.fixture
def clinic(migrated_file: Path, tmp_path: Path) -> Iterator[Clinic]:
    path = tmp_path / "server.db"
    path.write_bytes(migrated_file.read_bytes())
    engine = open_database(f"sqlite:///{path}")
    yield Clinic.on(engine, tmp_path)
    engine.dispose()


@pytest.fixture
def client(clinic: Clinic) -> TestClient:
    return TestClient(create_app(clinic.gateway))


@pytest.fixture
def job(clinic: Clinic) -> str:
    """One that is over."""
    job, events = clinic.job(JobKind.FIT), Events(clinic.gateway)
    said: list[JobEvent] = [
        StageEvent(stage=Stage.LOADING),
        PlanEvent(plan=released.plan()),
        StateEvent(state=JobState.SUCCEEDED),
    ]
    for event in said:
        clinic.gateway.write(lambda c, event=event: events.append(c, job, event))
    clinic.watch.forward(10)
    return job


def _messages(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block.startswith("id:")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def _get(client: TestClient, clinic: Clinic, job: str, who: str = "paul", **more: Any) -> Any:
    headers = {**clinic.as_(who), **more.pop("headers", {})}
    return client.get(f"/v1/jobs/{job}/events", headers=headers, **more)


def test_pages(client: TestClient, clinic: Clinic, job: str) -> None:
    first = _get(client, clinic, job, params={"limit": 2}).json()["items"]
    rest = _get(client, clinic, job, params={"after": first[-1]["sequence"]}).json()["items"]
    assert [event["event"]["type"] for event in first + rest] == ["stage", "plan", "state"]
    assert first[0]["at"].startswith("2026-03-01T12:00:00")


def test_a_stream_ends_with_the_job(client: TestClient, clinic: Clinic, job: str) -> None:
    answer = _get(client, clinic, job, headers={"Accept": "text/event-stream"})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    messages = _messages(answer.text)
    assert [(m["id"], m["event"]) for m in messages] == [
        ("1", "stage"),
        ("2", "plan"),
        ("3", "state"),
    ]
    last = json.loads(messages[2]["data"])["event"]
    assert (last["type"], last["state"]) == ("state", "succeeded")


def test_a_stream_resumes(client: TestClient, clinic: Clinic, job: str) -> None:
    stream = {"Accept": "text/event-stream"}
    answer = _get(client, clinic, job, headers={**stream, "Last-Event-ID": "2"})
    assert [message["id"] for message in _messages(answer.text)] == ["3"]
    over = _get(client, clinic, job, headers={**stream, "Last-Event-ID": "3"})
    assert (over.status_code, over.content) == (204, b"")
    for bad in ("x", "-1", "1" * 30):
        answer = _get(client, clinic, job, headers={**stream, "Last-Event-ID": bad})
        assert answer.json()["code"] == "invalid"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_who_may_watch(client: TestClient, clinic: Clinic, job: str, accept: str) -> None:
    found = {
        who: _get(client, clinic, job, who, headers={"Accept": accept}).status_code
        for who in clinic.users
    }
    assert found == {
        "paul": 200, "olga": 200, "ann": 200, "petra": 404, "oscar": 404, "adam": 403,
    }  # fmt: skip
