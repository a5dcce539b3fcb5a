"""Everybody who watches sees every event once, in order; nobody can make it wait or grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from support.gateway import GatewayWorld
from taciturn.server.jobs import broadcast as broadcast_module
from taciturn.server.jobs.broadcast import Broadcast, TooManyWatchersError
from taciturn.server.jobs.events import Events
from taciturn.server.process_messages import ProcessMessages, Topic
from taciturn.wire.events import NodeEvent, NumberedEvent, StateEvent
from taciturn.wire.jobs import JobKind, JobState

TICK_S = 0.05


class JobLog:
    """A broadcast on real time with short ticks."""

    def __init__(self, world: GatewayWorld) -> None:
        from datetime import UTC, datetime

        object.__setattr__(world.gateway, "clock", lambda: datetime.now(UTC))
        self.world, self.events = world, Events(world.gateway)
        self.job = world.add_job(JobKind.FIT)

    def say(self, *texts: str) -> None:
        def work(connection: Any) -> None:
            for text in texts:
                event = NodeEvent(code="node", text=text)
                self.events.append(connection, self.job, event)

        self.world.gateway.write(work)

    def end(self) -> None:
        event = StateEvent(state=JobState.SUCCEEDED)
        self.world.gateway.write(lambda connection: self.events.append(connection, self.job, event))


@pytest.fixture
def log(engine: Engine, tmp_path: Path) -> JobLog:
    return JobLog(GatewayWorld.open(engine, tmp_path, tick_s=TICK_S).populate())


def _run(
    test: Callable[[Broadcast], Coroutine[Any, Any, None]], log: JobLog, limit: int = 100
) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test(Broadcast(log.events, limit))

    asyncio.run(bounded())


async def _numbers(stream: AsyncIterator[NumberedEvent | None]) -> list[int]:
    return [event.sequence async for event in stream if event is not None]


def test_a_stream_is_what_was_and_what_comes(log: JobLog) -> None:
    log.say("a", "b", "c")
    time.sleep(2 * TICK_S)

    async def test(broadcast: Broadcast) -> None:
        streams = [
            asyncio.create_task(_numbers(broadcast.watch(log.job, after))) for after in (0, 0, 2)
        ]
        await asyncio.sleep(2 * TICK_S)
        log.say("d")
        await asyncio.sleep(3 * TICK_S)
        log.end()
        whole, again, resumed = await asyncio.gather(*streams)
        assert whole == again == [1, 2, 3, 4, 5]
        assert resumed == [3, 4, 5]
        assert broadcast.watching == 0
        assert await broadcast.has_ended(log.job, 5)
        assert not await broadcast.has_ended(log.job, 4)

    _run(test, log)


def test_a_late_commit_is_not_missed(log: JobLog) -> None:
    """An event whose tick has passed before it was committed."""
    log.say("a")

    async def test(broadcast: Broadcast) -> None:
        stream = asyncio.create_task(_numbers(broadcast.watch(log.job, 0)))
        await asyncio.sleep(3 * TICK_S)
        now = log.world.gateway.clock
        from datetime import timedelta

        object.__setattr__(log.world.gateway, "clock", lambda: now() - timedelta(seconds=20))
        log.say("late")
        object.__setattr__(log.world.gateway, "clock", now)
        await asyncio.sleep(3 * TICK_S)
        log.end()
        assert await stream == [1, 2, 3]

    _run(test, log)


def test_a_slow_reader_is_let_go_and_resumes(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast_module, "_QUEUE", 4)
    log.say("first")
    time.sleep(2 * TICK_S)

    async def test(broadcast: Broadcast) -> None:
        async with aclosing(broadcast.watch(log.job, 0)) as stream:
            first = await anext(stream)
            assert first is not None
            for number in range(10):
                log.say(str(number))
            await asyncio.sleep(4 * TICK_S)  # it does not read
            got = [1, *await _numbers(stream)]
        assert len(got) < 11
        log.end()
        while not await broadcast.has_ended(
            log.job, got[-1]
        ):  # with a queue this short, perhaps once more
            got += await _numbers(broadcast.watch(log.job, got[-1]))
        assert got == list(range(1, 13))

    _run(test, log)


def test_stopping_ends_all_streams(log: JobLog) -> None:
    log.say("a")

    async def test(broadcast: Broadcast) -> None:
        streams = [asyncio.create_task(_numbers(broadcast.watch(log.job, 0))) for _ in range(3)]
        await asyncio.sleep(3 * TICK_S)
        await asyncio.to_thread(broadcast.stop)
        assert await asyncio.gather(*streams) == [[1]] * 3
        assert await _numbers(broadcast.watch(log.job, 0)) == []

    _run(test, log)


def test_there_is_room_for_so_many(log: JobLog) -> None:
    async def test(broadcast: Broadcast) -> None:
        waiting = asyncio.create_task(_numbers(broadcast.watch(log.job, 0)))
        await asyncio.sleep(TICK_S)
        with pytest.raises(TooManyWatchersError):
            await _numbers(broadcast.watch(log.job, 0))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert broadcast.watching == 0

    _run(test, log, limit=1)


def test_the_database_is_away_for_a_while(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Events.became_visible
    failures = iter([True, True])

    def failing(self: Events, *arguments: Any) -> Any:
        if next(failures, False):
            raise ConnectionError("gone")
        return look(self, *arguments)

    monkeypatch.setattr(Events, "became_visible", failing)

    async def test(broadcast: Broadcast) -> None:
        stream = asyncio.create_task(_numbers(broadcast.watch(log.job, 0)))
        log.say("a")
        log.end()
        assert await stream == [1, 2]

    _run(test, log)


def test_signs_of_life(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast_module, "_BEAT_S", 0.02)

    async def test(broadcast: Broadcast) -> None:
        async with aclosing(broadcast.watch(log.job, 0)) as stream:
            assert await anext(stream) is None
        monkeypatch.setattr(broadcast_module, "_LIFE_S", 0.0)
        assert await _numbers(broadcast.watch(log.job, 0)) == []

    _run(test, log)


def test_an_event_that_is_visible_at_once_is_not_waited_for(
    log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an end is that was due at a tick: whoever commits it notifies."""
    monkeypatch.setattr(broadcast_module, "_LOOK_S", 60.0)
    object.__setattr__(log.world.gateway.settings, "tick_s", 60.0)
    messages = ProcessMessages(log.world.gateway.engine)

    async def test(broadcast: Broadcast) -> None:
        messages.subscribe(Topic.EVENT, lambda _: broadcast.wake())
        stream = asyncio.create_task(_numbers(broadcast.watch(log.job, 0)))
        await asyncio.sleep(0.3)
        event, now_ms = StateEvent(state=JobState.SUCCEEDED), log.world.gateway.now_ms()
        log.world.gateway.write(
            lambda connection: log.events.append(connection, log.job, event, at_ms=now_ms)
        )
        if log.world.gateway.engine.dialect.name == "sqlite":
            broadcast.wake()  # one process, which looks each second
        async with asyncio.timeout(5):
            assert await stream == [1]

    messages.start()
    _run(test, log)
    messages.stop()
