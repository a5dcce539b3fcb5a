"""Ways in which several processes of one gateway could lose or repeat something: each is killed by
the check that is for it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from uvicorn.server import ServerState

from support.gateway import GatewayWorld
from support.postgres import NoPostgresError, PostgresServer, postgres
from taciturn.server import process_messages as messaging
from taciturn.server.database import open_database
from taciturn.server.http import connections
from taciturn.server.identity.anonymous import Anonymous
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.jobs import leader, text_streams
from taciturn.server.jobs.leader import LeaderTasks, PostgresLeader
from taciturn.server.jobs.text_streams import LIFETIME_MS, TextStreams
from taciturn.server.problems import ProblemError
from taciturn.server.process_messages import ProcessMessages, Topic
from taciturn.server.schema import versions
from taciturn.server.schema.tables import jobs, text_pieces
from taciturn.server.serve import GatewayConfig
from taciturn.server.services import Services
from taciturn.server.settings import Settings
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.worker import TextChunk

Patch = pytest.MonkeyPatch
NUMBERS = itertools.count()


@dataclass
class Place:
    """A gateway on PostgreSQL, and a second connection to its database."""

    here: Engine
    there: Engine
    folder: Path

    def __post_init__(self) -> None:
        self.world = GatewayWorld.open(self.here, self.folder).populate()
        self.job = self.world.add_job(JobKind.SAMPLE, model_id="mdl_1")
        self.world.worker_headers(self.job)
        query = select(jobs.c.worker_token).where(jobs.c.id == self.job)
        token = self.world.gateway.rows(query)[0].worker_token
        self.worker = WorkerPrincipal(job_id=self.job, token_id=token, attempt=1)
        self.streams = TextStreams(self.world.gateway)

    def add(self, text: str, offset: int | None, lease: int = 1) -> None:
        self.streams.add(self.worker, lease, TextChunk(text=text, offset=offset))

    def pieces(self) -> int:
        return int(self.world.gateway.rows(select(func.count(text_pieces.c.data)))[0][0])


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresServer]:
    try:
        with postgres() as running:
            yield running
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture
def place(cluster: PostgresServer, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    engines: list[Engine] = []

    def fresh() -> Place:
        url = cluster.create(f"mutants_{next(NUMBERS)}")
        engines.extend(open_database(url) for _ in range(2))
        versions.upgrade(engines[-1])
        return Place(engines[-2], engines[-1], tmp_path)

    yield fresh
    for engine in engines:
        engine.dispose()


def repeated_text(place: Place) -> None:
    for _ in range(2):
        place.add("On", 0)
    assert place.pieces() == 1


def text_of_another_worker(place: Place) -> None:
    try:
        place.add("forged", 0, lease=7)
    except ProblemError:
        return
    raise AssertionError("taken")


def text_in_the_database(place: Place) -> None:
    place.add("On", 0)
    place.world.clock.forward(LIFETIME_MS / 1000 + 1)
    place.streams.prune()
    assert place.pieces() == 0


def reader_elsewhere(place: Place) -> None:
    """It is notified, and only once the text is there."""
    listening, details = ProcessMessages(place.there), list[str]()
    listening.subscribe(Topic.TEXT, details.append)
    listening.start()
    time.sleep(1)
    write, early = place.world.gateway.write, list[str]()

    def watched(work: Callable[[Any], Any]) -> Any:
        def then_wait(connection: Any) -> Any:
            result = work(connection)
            time.sleep(0.5)
            early.extend(details)
            return result

        return write(then_wait)

    place.streams.gateway = _With(place.world.gateway, watched)  # type: ignore[assignment]
    place.add("On", 0)
    deadline = time.monotonic() + 3
    while not details and time.monotonic() < deadline:
        time.sleep(0.02)
    listening.stop()
    assert details == [place.job]
    assert early == []


class _With:
    """A gateway with another `write`."""

    def __init__(self, gateway: Any, write: Any) -> None:
        self._gateway, self.write = gateway, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gateway, name)


def two_dispatchers(place: Place) -> None:
    first, second = PostgresLeader(place.here), PostgresLeader(place.there)
    leads = [first.lead(), second.lead()]
    first.stop()
    second.stop()
    assert leads == [True, False]


def tasks_of_the_leader(place: Place) -> None:
    started: list[str] = []

    class Component:
        def start(self) -> None:
            started.append("start")

        def stop(self) -> None:
            started.append("stop")

    first, second = PostgresLeader(place.here), PostgresLeader(place.there)
    for each in (first, second):
        each.lead()
        LeaderTasks(each, [Component]).follow()
    first.stop()
    second.stop()
    assert started == ["start"]


def strangers_of_all_processes(place: Place) -> None:
    one, other = (Anonymous(6, kind="strangers") for _ in range(2))
    for _ in range(6):
        assert one.enter("192.0.2.1") is None
    one.publish(other.hear)
    assert other.enter("192.0.2.1") is not None
    assert other.enter("192.0.2.2") is None


def sample_for_two_warm_workers(place: Place) -> None:
    """One of them gets it."""
    services = Services.of(place.world.gateway, launcher=object())  # type: ignore[arg-type]
    place.world.add_job(JobKind.SAMPLE, state=JobState.QUEUED, model_id="mdl_1")
    claims = [services.dispatcher.claim_sample("mdl_1", f"handle-{n}") for n in range(2)]
    assert [claim is None for claim in claims] == [False, True]


class Quiet(asyncio.Transport):
    """A transport that goes nowhere."""

    def close(self) -> None: ...

    def write(self, data: Any) -> None: ...


def streams_at_a_stop(place: Place) -> None:
    told: list[str] = []
    config = GatewayConfig(Settings(), lambda: None)  # type: ignore[arg-type,return-value]
    config.load()
    state = {connections.ANNOUNCE_STOP: lambda: told.append("stop")}

    async def stopped() -> None:
        made = connections.LimitedConnection(config, ServerState(), state)
        made.transport = Quiet()
        made.conn = connections._Reader(Settings())
        made.shutdown()

    asyncio.run(stopped())
    assert told == ["stop"]


def _nothing(*_: object, **__: object) -> None:
    return None


def offsets_ignored(patch: Patch) -> None:
    sound = TextStreams.add

    def add(self: TextStreams, worker: Any, lease: int, chunk: TextChunk) -> None:
        sound(self, worker, lease, chunk.model_copy(update={"offset": None}))

    patch.setattr(TextStreams, "add", add)


def lease_not_looked_at(patch: Patch) -> None:
    sound = TextStreams.add
    patch.setattr(TextStreams, "add", lambda self, worker, _, chunk: sound(self, worker, 1, chunk))


def text_kept(patch: Patch) -> None:
    patch.setattr(TextStreams, "prune", _nothing)


def reader_not_notified(patch: Patch) -> None:
    patch.setattr(text_streams, "publish_with", _nothing)


def notified_before_the_commit(patch: Patch) -> None:
    def at_once(connection: Any, topic: Topic, detail: str = "") -> None:
        ProcessMessages(connection.engine).publish(topic, detail)

    patch.setattr(text_streams, "publish_with", at_once)


def deaf(patch: Patch) -> None:
    patch.setattr(messaging.ProcessMessages, "_deliver", _nothing)


def lead_taken_by_all(patch: Patch) -> None:
    patch.setattr(leader.PostgresLeader, "lead", lambda self: True)


def leader_tasks_everywhere(patch: Patch) -> None:
    patch.setattr(leader.PostgresLeader, "leads", property(lambda self: True))


def limits_of_each_process(patch: Patch) -> None:
    patch.setattr(Anonymous, "hear", _nothing)


def sample_left_in_the_queue(patch: Patch) -> None:
    from taciturn.server.jobs.dispatcher import Dispatcher

    patch.setattr(Dispatcher, "claim", lambda self, job_id, handle=None: "token")


def stop_not_announced(patch: Patch) -> None:
    patch.setattr(connections.LimitedConnection, "shutdown", connections.H11Protocol.shutdown)


Check = Callable[[Place], None]
MUTANTS: list[tuple[Callable[[Patch], None], Check]] = [
    (offsets_ignored, repeated_text),
    (lease_not_looked_at, text_of_another_worker),
    (text_kept, text_in_the_database),
    (reader_not_notified, reader_elsewhere),
    (notified_before_the_commit, reader_elsewhere),
    (deaf, reader_elsewhere),
    (lead_taken_by_all, two_dispatchers),
    (leader_tasks_everywhere, tasks_of_the_leader),
    (limits_of_each_process, strangers_of_all_processes),
    (sample_left_in_the_queue, sample_for_two_warm_workers),
    (stop_not_announced, streams_at_a_stop),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_a_mutant_is_killed_by_its_check(
    mutant: Callable[[Patch], None],
    check: Check,
    place: Callable[[], Place],
    monkeypatch: Patch,
) -> None:
    check(place())
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(place())
