"""A launcher that does not answer, or has no room: jobs wait, say so, and go on where they were."""

from __future__ import annotations

import logging

import pytest

from support.gateway import GatewayWorld, fit
from taciturn.server.jobs.deferrals import LAPSE_MS, Deferrals, Outage
from taciturn.server.launchers.kubernetes.client import QuotaError

SMALL = fit(target_epsilon=0.1)


def told(world: GatewayWorld, job: str) -> list[str]:
    """Codes of what was said of its machines."""
    world.clock.forward(10)
    events = world.get(f"jobs/{job}/events?wait_s=0").json()["items"]
    return [each["event"]["code"] for each in events if each["event"]["type"] == "node"]


def rounds(world: GatewayWorld, count: int, apart_s: float = 5) -> None:
    for _ in range(count):
        world.clock.forward(apart_s)
        world.tick()


def test_a_job_outlives_an_outage(world: GatewayWorld) -> None:
    """An hour, several gateways' lives long; the job is started once, and not before."""
    world.launcher.away = True
    job = world.submit(SMALL).json()["id"]
    world.tick()
    assert world.job_state(job) == "provisioning"
    rounds(world, 60, apart_s=30)
    world.restart()
    rounds(world, 60, apart_s=30)
    world.launcher.away = False
    rounds(world, 15)
    assert world.job_state(job) == "provisioning"
    assert [order.handle for order in world.launcher.orders] == [f"{job}-1"]
    assert world.worker(job).take().status_code == 200
    assert told(world, job) == ["provisioning.outage"] * 2  # by each of the two gateways


def test_whoever_comes_late_because_of_an_outage_is_not_taken_for_late(world: GatewayWorld) -> None:
    world.launcher.away = True
    job = world.submit(SMALL).json()["id"]
    rounds(world, 50, apart_s=30)
    world.launcher.away = False
    rounds(world, 15)
    assert world.launcher.stopped == []
    assert len(world.launcher.orders) == 1
    assert world.worker(job).take().status_code == 200


def test_the_longest_outage_ends_jobs_and_says_so(world: GatewayWorld) -> None:
    world.launcher.away = True
    job = world.submit(SMALL).json()["id"]
    rounds(world, 20, apart_s=600)
    assert world.job_state(job) == "provisioning"
    rounds(world, 10, apart_s=600)
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "outage")
    assert "did not answer" in seen["failure"]["text"]


def test_a_cluster_that_is_away_is_left_alone_for_longer_each_time(
    world: GatewayWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.launcher.away = True
    for number in range(3):
        world.submit(SMALL, key=f"many-{number:04}")
    with caplog.at_level(logging.WARNING):
        rounds(world, 120)
    assert world.launcher.calls <= 20  # 10 minutes, a minute apart in the end
    assert len([each for each in caplog.records if each.name == "taciturn.server.jobs"]) <= 2


def test_running_jobs_go_on_through_an_outage(world: GatewayWorld) -> None:
    """Also one whose worker has been silent: what it holds is not given away meanwhile."""
    worker = world.running(SMALL)
    world.launcher.away = True
    rounds(world, 60)
    assert world.job_state(worker.job) == "running"
    assert worker.say("heartbeat").status_code == 200
    assert worker.charge(0, 5).status_code == 204
    world.launcher.away = False
    rounds(world, 15)
    assert worker.say("heartbeat").status_code == 200
    assert len(world.launcher.orders) == 1


def test_a_gateway_that_starts_in_an_outage_vouches_for_all(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    world.clock.forward(3600)
    world.launcher.away = True
    world.restart()
    rounds(world, 2)
    world.launcher.away = False
    rounds(world, 4)
    assert world.launcher.stopped == []
    assert worker.say("heartbeat").status_code == 200


def test_a_job_can_be_cancelled_in_an_outage(world: GatewayWorld) -> None:
    worker = world.running(SMALL)
    world.launcher.away = True
    world.post(f"jobs/{worker.job}/cancel")
    rounds(world, 6)
    assert world.job_state(worker.job) == "cancelled"
    world.launcher.away = False
    rounds(world, 15)
    assert (f"{worker.job}-1", 20.0) in world.launcher.stopped


def test_a_full_quota_is_waited_for_and_named(world: GatewayWorld) -> None:
    world.launcher.refuses = QuotaError(403, "exceeded quota: q", "Forbidden")
    job = world.submit(SMALL).json()["id"]
    rounds(world, 60)
    assert world.job_state(job) == "provisioning"
    assert told(world, job) == ["provisioning.quota"]
    assert world.client.get("/v1/ready").json()["launcher"] == "ok"
    world.launcher.refuses = None
    rounds(world, 15)
    assert [order.handle for order in world.launcher.orders] == [f"{job}-1"]


def test_a_quota_that_stays_full_ends_the_job(world: GatewayWorld) -> None:
    world.launcher.refuses = QuotaError(403, "exceeded quota: q", "Forbidden")
    job = world.submit(SMALL).json()["id"]
    rounds(world, 30, apart_s=600)
    assert world.get(f"jobs/{job}").json()["failure"]["code"] == "outage"


def test_machines_that_did_not_come_are_not_waited_for_again(world: GatewayWorld) -> None:
    job = world.submit(SMALL).json()["id"]
    world.tick()
    world.launcher.given_up.add(f"{job}-1")
    rounds(world, 2)
    seen = world.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "expired")
    assert len(world.launcher.orders) == 1


def test_a_running_job_that_loses_its_machine_for_long_gets_one_more_try(
    world: GatewayWorld,
) -> None:
    worker = world.running(SMALL)
    world.launcher.given_up.add(f"{worker.job}-1")
    rounds(world, 2)
    assert [order.attempt for order in world.launcher.orders] == [1, 2]


def test_readiness_tells_of_an_outage_and_stays(world: GatewayWorld) -> None:
    """A gateway that was not ready would get no requests, of running workers neither."""
    assert world.client.get("/v1/ready").json() == {
        "status": "ok", "launcher": "ok", "away_since": None
    }  # fmt: skip
    began = world.clock.now
    world.launcher.away = True
    world.tick()
    rounds(world, 50)
    answer = world.client.get("/v1/ready")
    assert answer.status_code == 200
    assert answer.json()["launcher"] == "away"
    assert answer.json()["away_since"][:19] == began.isoformat()[:19]
    world.launcher.away = False
    rounds(world, 15)
    assert world.client.get("/v1/ready").json()["launcher"] == "ok"


def test_patience_doubles_and_ends() -> None:
    now = [0]
    made = Deferrals(lambda: now[0])
    assert made.failed("x")
    waits = []
    for _ in range(8):
        began = now[0]
        while made.rests("x"):
            now[0] += 500
        waits.append((now[0] - began) / 1000)
        assert not made.failed("x")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not made.rests("y")
    assert made.lasts_s("x") == now[0] / 1000
    assert made.succeeded("x")
    assert not made.succeeded("x")


def test_what_is_heard_of_an_outage_lapses() -> None:
    """Its end may not be heard."""
    now, said = [1000], list[bool]()
    made = Outage(lambda: now[0], said.append)
    made.say(True)
    now[0] += LAPSE_MS
    assert made.since_ms == 1000
    made.hear(True)
    assert made.since_ms == 1000
    now[0] += LAPSE_MS + 1
    assert made.since_ms is None
    made.say(False)
    assert said == [True, False]
