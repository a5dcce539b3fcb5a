"""Reads of a dataset are found however many jobs it has, before and after the leader has kept
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from support.gateway import DATASET, GatewayWorld
from support.statements import count_statements
from taciturn.server.catalog import reads
from taciturn.server.catalog.reads import SETTLED_MS, Reads, ReadThing, thing_at
from taciturn.server.retention import RetentionService
from taciturn.server.schema.tables import (
    artifacts,
    audit_log,
    dataset_reads,
    dataset_reads_end,
    jobs,
)

LIST = f"datasets/{DATASET}/disclosures"


@pytest.fixture
def place(engine: Engine, tmp_path: Path) -> GatewayWorld:
    """A gateway with people and data, on both databases, that keeps its audit log for a week."""
    return GatewayWorld.open(engine, tmp_path, audit_log_days=7).populate()


def fitted(world: GatewayWorld) -> tuple[str, str]:
    """Return a fit of paul's with a file, and its model."""
    fit = world.add_job("fit", state="succeeded")
    model = world.add_model(fit, owner_id=world.users["paul"])
    change = update(jobs).where(jobs.c.id == fit).values(model_id=model)
    file = {"job_id": fit, "name": "README.md", "size_bytes": 10, "sha256": "0" * 64}
    added = insert(artifacts).values(**file, created_at_ms=world.gateway.now_ms())
    for statement in (change, added):
        world.gateway.write(lambda connection, it=statement: connection.execute(it))
    return fit, model


def kept(world: GatewayWorld) -> list[tuple[str, int]]:
    return [tuple(row) for row in world.gateway.rows(select(dataset_reads))]


def items(world: GatewayWorld, limit: int = 50) -> list[dict[str, Any]]:
    """Return all disclosures, read page by page."""
    lines, cursor = [], ""
    while True:
        answer = world.get(f"{LIST}?limit={limit}{cursor}", "olga").json()
        lines += answer["items"]
        if answer["next_cursor"] is None:
            return lines
        cursor = f"&cursor={answer['next_cursor']}"


def read_all(world: GatewayWorld) -> None:
    fit, model = fitted(world)
    sample = world.add_job("sample", state="succeeded", model_id=model, requester="paul")
    world.open_namespace("others", "other")
    other = world.add_job("fit", "other", state="succeeded", namespace="others")
    for path in (f"jobs/{fit}", f"models/{model}", f"jobs/{sample}/events", f"jobs/{other}"):
        assert world.get(path, "paul").status_code == 200, path
    assert world.get(f"jobs/{fit}", "olga").status_code == 200
    assert world.get(f"jobs/{fit}", "petra").status_code == 404


def test_the_same_is_told_before_and_after_it_is_kept(
    place: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all(place)
    before = items(place)
    read = [(line["kind"], line["to"]) for line in before if line["step"] == "read"]
    assert read == [("events", "user:paul"), ("model", "user:paul"), ("job", "user:paul")]
    assert kept(place) == []
    Reads(place.gateway).turn()
    assert kept(place) == [], "what is younger than a minute may still be on its way"
    place.clock.forward(SETTLED_MS / 1000)
    monkeypatch.setattr(reads, "_AT_ONCE", 2)
    Reads(place.gateway).turn()
    assert [dataset for dataset, _ in kept(place)].count(DATASET) == 3
    assert items(place) == before == items(place, limit=1)
    assert place.get(f"datasets/{DATASET}/preview", "paul").status_code == 200
    assert [line["kind"] for line in items(place)][:2] == ["preview", "events"]
    Reads(place.gateway).turn()
    place.clock.forward(SETTLED_MS / 1000)
    Reads(place.gateway).turn()
    assert [line["kind"] for line in items(place, limit=2)][:2] == ["preview", "events"]
    ends = [row.entry for row in place.gateway.rows(select(dataset_reads_end.c.entry))]
    newest = max(row.id for row in place.gateway.rows(select(audit_log.c.id)))
    assert len(ends) == 1
    assert 0 < ends[0] < newest


def test_what_the_audit_log_has_no_more_is_not_kept_either(place: GatewayWorld) -> None:
    read_all(place)
    place.clock.forward(days=8)
    Reads(place.gateway).turn()
    assert kept(place)
    RetentionService(place.gateway, place.app.state.services.artifacts.store).prune()
    assert kept(place) == []
    assert [line["step"] for line in items(place)] == ["released"]


def test_more_jobs_do_not_mean_more_statements(place: GatewayWorld) -> None:
    counts = []
    for number in (1, 12):
        for _ in range(number):
            fit, _ = fitted(place)
            assert place.get(f"jobs/{fit}", "paul").status_code == 200
        place.clock.forward(SETTLED_MS / 1000)
        Reads(place.gateway).turn()
        assert len(items(place)) == 2 * len(kept(place))
        with count_statements(place.gateway.engine) as count:
            assert place.get(LIST, "olga").status_code == 200
        counts.append(count.statements)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("path", "thing"),
    [
        ("/v1/jobs/job_1", ("job", "jobs", "job_1", None)),
        ("/v1/jobs/job_1/files/samples.jsonl", ("texts", "jobs", "job_1", "samples.jsonl")),
        ("/v1/models/mdl_1/files/a/b", ("model", "models", "mdl_1", "a/b")),
        ("/jobs/job_1", ("job", "jobs", "job_1", None)),
        ("/datasets/phee/selections", ("preview", "datasets", "phee", None)),
        ("/v1/datasets/phee/files/x", None),
        ("/jobs/job_1/files/x", None),
        ("/jobs/job_1/live", ("events", "jobs", "job_1", None)),
        ("/jobs/job_1/progress", ("events", "jobs", "job_1", None)),
        ("/models/mdl_1/evidence", ("figures", "models", "mdl_1", None)),
        ("/models/mdl_1/verifications", ("certificate", "models", "mdl_1", None)),
        ("/datasets/phee/checks", ("audit", "datasets", "phee", None)),
        ("/v1/jobs", None),
        ("/v1/jobs/job_1/files/", None),
        ("/v1/users/ann", None),
        ("/", None),
    ],
)
def test_paths_lead_to_what_they_give(path: str, thing: tuple[object, ...] | None) -> None:
    read = thing_at(path)
    assert (read and (read.kind, read.room, read.name, read.file)) == thing


@pytest.mark.parametrize(
    ("path", "thing"),
    [
        ("/openai/v1/files/phee", ReadThing("terms", "datasets", "phee")),
        ("/v1/fine_tuning/jobs/job_1", ReadThing("job", "jobs", "job_1")),
        ("/openai/v1/fine_tuning/jobs/job_1/events", ReadThing("events", "jobs", "job_1")),
        ("/v1/fine_tuning/jobs/job_1/checkpoints", ReadThing("job", "jobs", "job_1")),
        ("/v1/files", None),
    ],
)
def test_what_openai_calls_files_and_fine_tuning_jobs_is_found(
    path: str, thing: ReadThing | None
) -> None:
    assert thing_at(path) == thing
