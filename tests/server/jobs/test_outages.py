"""A launcher that does not answer, or has no room: jobs wait, say so, and go on where they were."""

from __future__ import annotations

import logging

import pytest

from gateways.world import fit
from taciturn.server.jobs.deferrals import LAPSE_MS, Deferrals, Outage
from taciturn.server.launchers.kubernetes.client import QuotaError
from ward import Ward

SMALL = fit(target_epsilon=0.1)


def told(ward: Ward, job: str) -> list[str]:
    """Codes of what was said of its machines."""
    ward.watch.forward(10)
    events = ward.get(f"jobs/{job}/events?wait_s=0").json()["items"]
    return [each["event"]["code"] for each in events if each["event"]["type"] == "node"]


def rounds(ward: Ward, count: int, apart_s: float = 5) -> None:
    for _ in range(count):
        ward.watch.forward(apart_s)
        ward.tick()


def test_a_job_outlives_an_outage(ward: Ward) -> None:
    """An hour, several gateways' lives long; the job is started once, and not before."""
    ward.launcher.away = True
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    assert ward.state(job) == "provisioning"
    rounds(ward, 60, apart_s=30)
    ward.restarted()
    rounds(ward, 60, apart_s=30)
    ward.launcher.away = False
    rounds(ward, 15)
    assert ward.state(job) == "provisioning"
    assert [order.handle for order in ward.launcher.orders] == [f"{job}-1"]
    assert ward.hand(job).take().status_code == 200
    assert told(ward, job) == ["provisioning.outage"] * 2  # by each of the two gateways


def test_whoever_comes_late_because_of_an_outage_is_not_taken_for_late(ward: Ward) -> None:
    ward.launcher.away = True
    job = ward.ask(SMALL).json()["id"]
    rounds(ward, 50, apart_s=30)
    ward.launcher.away = False
    rounds(ward, 15)
    assert ward.launcher.stopped == []
    assert len(ward.launcher.orders) == 1
    assert ward.hand(job).take().status_code == 200


def test_the_longest_outage_ends_jobs_and_says_so(ward: Ward) -> None:
    ward.launcher.away = True
    job = ward.ask(SMALL).json()["id"]
    rounds(ward, 20, apart_s=600)
    assert ward.state(job) == "provisioning"
    rounds(ward, 10, apart_s=600)
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "outage")
    assert "did not answer" in seen["failure"]["text"]


def test_a_cluster_that_is_away_is_left_alone_for_longer_each_time(
    ward: Ward, caplog: pytest.LogCaptureFixture
) -> None:
    ward.launcher.away = True
    for number in range(3):
        ward.ask(SMALL, key=f"many-{number:04}")
    with caplog.at_level(logging.WARNING):
        rounds(ward, 120)
    assert ward.launcher.asked <= 20  # 10 minutes, a minute apart in the end
    assert len([each for each in caplog.records if each.name == "taciturn.server.jobs"]) <= 2


def test_running_jobs_go_on_through_an_outage(ward: Ward) -> None:
    """Also one whose worker has been silent: what it holds is not given away meanwhile."""
    hand = ward.running(SMALL)
    ward.launcher.away = True
    rounds(ward, 60)
    assert ward.state(hand.job) == "running"
    assert hand.say("heartbeat").status_code == 200
    assert hand.charge(0, 5).status_code == 204
    ward.launcher.away = False
    rounds(ward, 15)
    assert hand.say("heartbeat").status_code == 200
    assert len(ward.launcher.orders) == 1


def test_a_gateway_that_starts_in_an_outage_vouches_for_all(ward: Ward) -> None:
    hand = ward.running(SMALL)
    ward.watch.forward(3600)
    ward.launcher.away = True
    ward.restarted()
    rounds(ward, 2)
    ward.launcher.away = False
    rounds(ward, 4)
    assert ward.launcher.stopped == []
    assert hand.say("heartbeat").status_code == 200


def test_a_job_can_be_cancelled_in_an_outage(ward: Ward) -> None:
    hand = ward.running(SMALL)
    ward.launcher.away = True
    ward.post(f"jobs/{hand.job}/cancel")
    rounds(ward, 6)
    assert ward.state(hand.job) == "cancelled"
    ward.launcher.away = False
    rounds(ward, 15)
    assert (f"{hand.job}-1", 20.0) in ward.launcher.stopped


def test_a_full_quota_is_waited_for_and_named(ward: Ward) -> None:
    ward.launcher.refuses = QuotaError(403, "exceeded quota: q", "Forbidden")
    job = ward.ask(SMALL).json()["id"]
    rounds(ward, 60)
    assert ward.state(job) == "provisioning"
    assert told(ward, job) == ["provisioning.quota"]
    assert ward.client.get("/v1/ready").json()["launcher"] == "ok"
    ward.launcher.refuses = None
    rounds(ward, 15)
    assert [order.handle for order in ward.launcher.orders] == [f"{job}-1"]


def test_a_quota_that_stays_full_ends_the_job(ward: Ward) -> None:
    ward.launcher.refuses = QuotaError(403, "exceeded quota: q", "Forbidden")
    job = ward.ask(SMALL).json()["id"]
    rounds(ward, 30, apart_s=600)
    assert ward.get(f"jobs/{job}").json()["failure"]["code"] == "outage"


def test_machines_that_did_not_come_are_not_waited_for_again(ward: Ward) -> None:
    job = ward.ask(SMALL).json()["id"]
    ward.tick()
    ward.launcher.given_up.add(f"{job}-1")
    rounds(ward, 2)
    seen = ward.get(f"jobs/{job}").json()
    assert (seen["state"], seen["failure"]["code"]) == ("failed", "expired")
    assert len(ward.launcher.orders) == 1


def test_a_running_job_that_loses_its_machine_for_long_gets_one_more_try(ward: Ward) -> None:
    hand = ward.running(SMALL)
    ward.launcher.given_up.add(f"{hand.job}-1")
    rounds(ward, 2)
    assert [order.attempt for order in ward.launcher.orders] == [1, 2]


def test_readiness_tells_of_an_outage_and_stays(ward: Ward) -> None:
    """A gateway that was not ready would get no requests, of running workers neither."""
    assert ward.client.get("/v1/ready").json() == {
        "status": "ok", "launcher": "ok", "away_since": None
    }  # fmt: skip
    began = ward.watch.now
    ward.launcher.away = True
    ward.tick()
    rounds(ward, 50)
    answer = ward.client.get("/v1/ready")
    assert answer.status_code == 200
    assert answer.json()["launcher"] == "away"
    assert answer.json()["away_since"][:19] == began.isoformat()[:19]
    ward.launcher.away = False
    rounds(ward, 15)
    assert ward.client.get("/v1/ready").json()["launcher"] == "ok"


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
