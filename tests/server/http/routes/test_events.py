"""A job's events over HTTP: pages, and streams that resume and end."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update
from starlette.requests import Request

from support import released_files
from support.client import Client
from support.gateway import GatewayWorld
from taciturn.server.app import create_app
from taciturn.server.http import access
from taciturn.server.http.routes.events import read_events
from taciturn.server.identity.remembered import KEPT_S
from taciturn.server.jobs import broadcast
from taciturn.server.jobs.events import Events
from taciturn.server.schema.tables import users
from taciturn.wire.events import JobEvent, PlanEvent, Stage, StageEvent, StateEvent
from taciturn.wire.identity import Role, UserChange
from taciturn.wire.jobs import JobKind, JobState


@pytest.fixture
def world(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    return GatewayWorld.open(lite_engine, tmp_path).populate()


@pytest.fixture
def client(world: GatewayWorld) -> Client:
    return Client(create_app(world.gateway))


@pytest.fixture
def job(world: GatewayWorld) -> str:
    """One that is over."""
    job, events = world.add_job(JobKind.FIT), Events(world.gateway)
    said: list[JobEvent] = [
        StageEvent(stage=Stage.LOADING),
        PlanEvent(plan=released_files.plan()),
        StateEvent(state=JobState.SUCCEEDED),
    ]
    for event in said:
        world.gateway.write(lambda c, event=event: events.append(c, job, event))
    world.clock.forward(10)
    return job


def _messages(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block.startswith("id:")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def _get(client: Client, world: GatewayWorld, job: str, who: str = "paul", **more: Any) -> Any:
    headers = {**world.headers(who), **more.pop("headers", {})}
    return client.get(f"/v1/jobs/{job}/events", headers=headers, **more)


def test_pages(client: Client, world: GatewayWorld, job: str) -> None:
    first = _get(client, world, job, params={"limit": 2}).json()["items"]
    rest = _get(client, world, job, params={"after": first[-1]["sequence"]}).json()["items"]
    assert [event["event"]["type"] for event in first + rest] == ["stage", "plan", "state"]
    assert first[0]["at"].startswith("2026-03-01T12:00:00")


def test_a_stream_ends_with_the_job(client: Client, world: GatewayWorld, job: str) -> None:
    answer = _get(client, world, job, headers={"Accept": "text/event-stream"})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    messages = _messages(answer.text)
    assert [(m["id"], m["event"]) for m in messages] == [
        ("1", "stage"),
        ("2", "plan"),
        ("3", "state"),
    ]
    last = json.loads(messages[2]["data"])["event"]
    assert (last["type"], last["state"]) == ("state", "succeeded")


def test_a_stream_resumes(client: Client, world: GatewayWorld, job: str) -> None:
    stream = {"Accept": "text/event-stream"}
    answer = _get(client, world, job, headers={**stream, "Last-Event-ID": "2"})
    assert [message["id"] for message in _messages(answer.text)] == ["3"]
    over = _get(client, world, job, headers={**stream, "Last-Event-ID": "3"})
    assert (over.status_code, over.content) == (204, b"")
    for bad in ("x", "-1", "1" * 30):
        answer = _get(client, world, job, headers={**stream, "Last-Event-ID": bad})
        assert answer.json()["code"] == "invalid"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_who_may_watch(client: Client, world: GatewayWorld, job: str, accept: str) -> None:
    found = {
        who: _get(client, world, job, who, headers={"Accept": accept}).status_code
        for who in world.users
    }
    assert found == {
        "paul": 200, "olga": 200, "ann": 200, "petra": 404, "oscar": 404, "adam": 403,
        "otto": 404, "bea": 404,
    }  # fmt: skip


@pytest.mark.parametrize("loss", ["revoked", "disabled", "silently"])
def test_a_stream_ends_soon_after_access_is_lost(
    world: GatewayWorld, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "_BEAT_S", 0.05)
    world.person("pia", Role.PRACTITIONER)
    job = world.add_job(JobKind.FIT, requester="pia")
    app = create_app(world.gateway)
    services, caller = app.state.services, world.principal("pia")
    headers = [(b"authorization", f"Bearer {world.tokens['pia']}".encode())]
    request = Request(
        {"type": "http", "method": "GET", "path": f"/v1/jobs/{job}/events", "headers": headers,
         "app": app, "state": {}, "query_string": b""}
    )  # fmt: skip

    def lose() -> None:
        if loss == "revoked":
            services.directory.revoke(caller.token_id)
        elif loss == "disabled":
            services.users.change(world.principal("adam"), "pia", UserChange(disabled=True))
        else:  # by another process, which could not say so
            monkeypatch.setattr(access, "_CHECK_S", 0.0)
            change = update(users).where(users.c.name == "pia").values(disabled=True)
            world.gateway.write(lambda connection: connection.execute(change))
            time.sleep(KEPT_S + 0.1)

    async def test() -> None:
        answer = await read_events(request, job, caller, services, accept="text/event-stream")
        stream = answer.body_iterator
        assert "retry" in str(await anext(stream))
        assert await anext(stream) == b": alive\n\n"
        await asyncio.to_thread(lose)
        async with asyncio.timeout(5):
            rest = [chunk async for chunk in stream]
        assert set(rest) <= {b": alive\n\n"}
        assert services.broadcast.watching == 0

    asyncio.run(test())
