"""Events are numbered, kept once, and shown at ticks."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from support.gateway import GatewayWorld
from taciturn.server.jobs.events import Events, newest_only, worker_sequence
from taciturn.wire.events import (
    CountEvent,
    JobEvent,
    NumberedEvent,
    ProgressEvent,
    Stage,
    StageEvent,
    StateEvent,
)
from taciturn.wire.jobs import JobKind, JobState


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> GatewayWorld:
    return GatewayWorld.open(engine, tmp_path).populate()


@pytest.fixture
def job(world: GatewayWorld) -> str:
    return world.add_job(JobKind.FIT)


@pytest.fixture
def events(world: GatewayWorld) -> Events:
    return Events(world.gateway)


def _append(events: Events, job: str, event: JobEvent, number: str | None = None) -> None:
    events.gateway.write(lambda connection: events.append(connection, job, event, number))


def _progress(step: int) -> ProgressEvent:
    return ProgressEvent(step=step, steps=10)


def test_an_event_is_shown_at_the_next_tick(world: GatewayWorld, job: str, events: Events) -> None:
    world.clock.forward(1.234)
    _append(events, job, StateEvent(state=JobState.RUNNING))
    world.clock.forward(3.7)  # 4.934 s after a tick
    assert events.page(job, 0, 10) == ()
    world.clock.forward(0.066)
    (shown,) = events.page(job, 0, 10)
    assert (shown.sequence, shown.at.second) == (1, 5)


def test_of_progress_in_one_message_the_newest_is_kept() -> None:
    stage, counts = StageEvent(stage=Stage.TRAINING), [CountEvent(done=n, of=9) for n in (1, 2)]
    told = [_progress(1), counts[0], stage, _progress(2), stage, _progress(3), counts[1]]
    assert list(newest_only(told, 7)) == [(9, stage), (11, stage), (12, told[5]), (13, counts[1])]
    assert list(newest_only(told[:4], 0)) == [(1, counts[0]), (2, stage), (3, told[3])]


def test_what_was_read_under_a_number_never_changes(
    world: GatewayWorld, job: str, events: Events
) -> None:
    """A transaction that began before the tick ends after it, on a slow machine."""
    read: list[NumberedEvent] = []

    def late(connection: Connection) -> None:
        events.append(connection, job, _progress(2), worker_sequence(1, 2))
        world.clock.forward(2)
        read.extend(events.page(job, 0, 10))

    world.clock.forward(0.1)
    _append(events, job, StageEvent(stage=Stage.TRAINING))
    _append(events, job, _progress(1), worker_sequence(1, 1))
    world.clock.forward(4)
    events.gateway.write(late)
    assert [shown.event for shown in read][-1] == _progress(1)
    world.clock.forward(5)
    page = events.page(job, 0, 10)
    assert page[: len(read)] == tuple(read)
    assert page[-1].event == _progress(2)
    assert [shown.sequence for shown in page] == list(range(1, len(page) + 1))


def test_a_repeated_message_is_kept_once(world: GatewayWorld, job: str, events: Events) -> None:
    def say() -> None:
        for number, stage in enumerate((Stage.LOADING, Stage.READING)):
            _append(events, job, StageEvent(stage=stage), worker_sequence(1, number))

    say()
    say()
    world.clock.forward(60)
    _append(events, job, StateEvent(state=JobState.QUEUED))
    say()  # still known, though the newest event is the gateway's own
    _append(events, job, StageEvent(stage=Stage.LOADING), worker_sequence(2, 0))
    world.clock.forward(60)
    assert len(events.page(job, 0, 10)) == 4


def test_time_never_runs_backwards(world: GatewayWorld, job: str, events: Events) -> None:
    _append(events, job, StageEvent(stage=Stage.LOADING))
    world.clock.forward(-100)
    _append(events, job, StageEvent(stage=Stage.READING))
    world.clock.forward(100)
    first, second = events.page(job, 0, 10)
    assert first.at == second.at


def test_pages_and_what_became_visible(world: GatewayWorld, job: str, events: Events) -> None:
    other = world.add_job(JobKind.SAMPLE)
    for stage in (Stage.LOADING, Stage.READING, Stage.TRAINING):
        _append(events, job, StageEvent(stage=stage))
    _append(events, other, StateEvent(state=JobState.SUCCEEDED))
    before = world.gateway.now_ms() - 1
    assert [shown.sequence for shown in events.page(job, 1, 1)] == [2]
    found = events.became_visible(before, {job, other})
    assert {name: len(shown) for name, shown in found.items()} == {job: 3, other: 1}
    assert events.became_visible(world.gateway.now_ms(), {job, other}) == {}
    assert set(events.became_visible(before, {job})) == {job}
    assert events.is_last(other, 1)
    assert not events.is_last(job, 3)
