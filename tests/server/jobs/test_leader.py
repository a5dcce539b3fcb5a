"""Several gateways on one database: one of them dispatches, and another one follows it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from support.gateway import GatewayWorld, fit
from support.launcher import FakeLauncher
from taciturn.server.context import Gateway
from taciturn.server.database import open_database
from taciturn.server.jobs.completion import NothingReleased
from taciturn.server.jobs.leader import FileLeader, LeaderTasks, PostgresLeader
from taciturn.server.ledger import Ledger, verify
from taciturn.server.services import Services

SMALL = fit(target_epsilon=0.1)


class Second:
    """Another gateway on the world's database, on another machine: its launcher knows its own
    workers only."""

    def __init__(self, world: GatewayWorld, folder: Path) -> None:
        url = world.gateway.engine.url.render_as_string(hide_password=False)
        self.engine = open_database(url)
        first = world.gateway
        ledger = Ledger(self.engine, first.seal_key, clock=world.clock)
        gateway = Gateway(first.settings, self.engine, first.seal_key, ledger, world.clock)
        self.launcher = FakeLauncher()
        self.services = Services.of(gateway, launcher=self.launcher, released=NothingReleased())

    def turn(self) -> None:
        self.services.dispatcher.turn()

    def stop(self) -> None:
        self.services.dispatcher.leader.stop()
        self.engine.dispose()


@pytest.fixture
def second(world: GatewayWorld, tmp_path: Path) -> Any:
    made = Second(world, tmp_path)
    yield made
    made.stop()
    world.services.dispatcher.leader.stop()


def started(*benches: FakeLauncher) -> Counter[str]:
    return Counter(order.handle for bench in benches for order in bench.orders)


def test_two_dispatchers_start_no_worker_twice(world: GatewayWorld, second: Second) -> None:
    made = [world.submit(SMALL, key=f"many-{n:04}").json()["id"] for n in range(8)]
    first = world.services.dispatcher

    def turns(turn: Any) -> None:
        for _ in range(10):
            turn()

    for _ in range(4):
        threads = [threading.Thread(target=turns, args=(t,)) for t in (first.turn, second.turn)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for bench in (world.launcher, second.launcher):
            for order in bench.orders:
                if order.handle not in bench.ended:
                    world.post(f"jobs/{order.job_id}/cancel")
                    bench.ended.add(order.handle)
        world.clock.forward(30)
    found = started(world.launcher, second.launcher)
    assert sorted(found) == sorted(f"{job}-1" for job in made)
    assert set(found.values()) == {1}
    assert not world.launcher.orders or not second.launcher.orders
    assert not verify(world.gateway.engine, key=world.gateway.seal_key).problems


def test_when_one_stops_the_next_one_follows(world: GatewayWorld, second: Second) -> None:
    world.services.dispatcher.turn()
    job = world.submit(SMALL).json()["id"]
    second.turn()
    assert second.launcher.orders == []
    world.services.dispatcher.turn()
    assert [order.handle for order in world.launcher.orders] == [f"{job}-1"]
    world.services.dispatcher.leader.stop()
    second.turn()
    # The first one's machine is not seen from here: its worker is started anew, under a new token.
    assert [order.handle for order in second.launcher.orders] == [f"{job}-1"]
    assert world.worker(job).take().status_code == 409
    world.services.dispatcher.turn()
    assert len(world.launcher.orders) == 1


def test_a_lost_connection_gives_the_lead_up(engine: Engine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("there is a lock of the server's on PostgreSQL only")
    first, other = PostgresLeader(engine), PostgresLeader(engine)
    assert first.lead()
    assert first.lead()
    assert not other.lead()
    with engine.connect() as connection:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        assert connection.execute(text(kill)).all()
    deadline = threading.Event()
    for _ in range(100):
        if other.lead():
            break
        deadline.wait(0.1)
    assert other.lead()
    assert not first.lead()
    assert not first.lead()
    other.stop()
    assert first.lead()
    first.stop()


def test_a_file_is_locked_by_one(tmp_path: Path) -> None:
    first, other = (FileLeader(tmp_path / "new" / "dispatcher.lock") for _ in range(2))
    assert first.lead()
    assert first.lead()
    assert not other.lead()
    first.stop()
    assert other.lead()
    assert not first.lead()
    other.stop()


class Component:
    """One that says when it runs."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")


def test_what_runs_in_the_leader_alone_follows_the_lead(tmp_path: Path) -> None:
    path, logs = tmp_path / "dispatcher.lock", ([], [])
    leaders = [FileLeader(path) for _ in logs]
    tasks = [
        LeaderTasks(leader, [lambda log=log: Component(log)])
        for leader, log in zip(leaders, logs, strict=True)
    ]

    def turn() -> None:
        for leader, each in zip(leaders, tasks, strict=True):
            leader.lead()
            each.follow()

    turn()
    turn()
    assert logs == (["start"], [])
    leaders[0].stop()
    tasks[0].follow()
    leaders[1].lead()
    turn()
    assert logs == (["start", "stop"], ["start"])
    leaders[1].stop()
    tasks[1].stop()
    turn()
    assert logs == (["start", "stop", "start"], ["start", "stop"])
