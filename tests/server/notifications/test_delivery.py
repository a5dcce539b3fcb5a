"""What happens is told to who may know of it, at least once, with one id, and then given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from support.gateway import DATASET, NAMESPACE, GatewayWorld, fit, gaussian_steps
from support.receivers import Arrival, Mailbox, Receiver, assert_signed, free_port
from support.told import HERE, Told, told
from taciturn.server.jobs.completion import End
from taciturn.server.notifications.delivery import Delivery
from taciturn.server.schema.tables import grant_terms, notifications, users
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import JobKind, JobState

UNLIMITED = fit(target_epsilon="unlimited", purpose="SECRET PURPOSE")
DAY_S = 86_400


def asked(world: GatewayWorld) -> str:
    answer = world.submit(UNLIMITED)
    return str(answer.json()["approval"])


def decide(world: GatewayWorld, approval: str, who: str, decision: str = "approve") -> None:
    body = {"decision": decision, "comment": "SECRET COMMENT"}
    assert world.post(f"approvals/{approval}/decisions", body, who).status_code == 201


def to(mailbox: Mailbox) -> list[tuple[str, str]]:
    """Who got mail, and its subject."""
    return sorted(
        (str(letter["To"]).partition("@")[0], str(letter["Subject"])) for letter in mailbox.letters
    )


def fail(world: GatewayWorld, job: str, code: FailureCode = FailureCode.INTERNAL) -> None:
    world.services.jobs.ending.end(job, End.failed(code))


def disclosed(world: GatewayWorld) -> list[tuple[str, str, str, str]]:
    """What the owner of the data sees of it, newest first."""
    lines = world.get(f"datasets/{DATASET}/disclosures", "olga").json()["items"]
    return [(line["step"], line["kind"], line["to"], line["job"]) for line in lines]


def kinds(world: GatewayWorld) -> list[str]:
    return sorted(row.kind for row in world.gateway.rows(select(notifications)))


def test_an_approval_is_told_to_who_may_decide_it_and_then_to_who_asked(
    mailing: Told, mailbox: Mailbox
) -> None:
    approval = asked(mailing.world)
    mailing.turn()
    assert [who for who, _ in to(mailbox)] == ["bea", "olga", "otto"]
    text = mailbox.letters[0].get_content()
    assert f"https://tac.example/approvals/{approval}" in text
    assert "paul asks to run a job (fit) on phee. It would run without a privacy guarantee." in text
    mailbox.letters.clear()
    decide(mailing.world, approval, "otto")
    decide(mailing.world, approval, "bea")
    mailing.turn()
    assert to(mailbox) == [
        (who, "[taciturn] Approval on phee: approved") for who in ("olga", "paul")
    ]
    assert "SECRET" not in "".join(letter.as_string() for letter in mailbox.letters)


def test_what_is_decided_before_it_is_told_is_not_asked_for_any_more(
    mailing: Told, mailbox: Mailbox
) -> None:
    approval = asked(mailing.world)
    decide(mailing.world, approval, "otto", "reject")
    mailing.turn()
    assert {subject for _, subject in to(mailbox)} == {"[taciturn] Approval on phee: rejected"}


def test_what_is_undone_is_not_told(quiet: Told) -> None:
    world = quiet.world

    def work(connection: Any) -> None:
        world.services.jobs.approvals.ask(
            connection, {"id": job, "namespace": NAMESPACE, **row}, "no_guarantee"
        )
        raise ZeroDivisionError

    job = world.add_job(JobKind.FIT, state="awaiting_approval")
    row = dict.fromkeys(("requester_id", "request", "plan", "event"))
    with pytest.raises(ZeroDivisionError):
        world.gateway.write(work)
    assert kinds(world) == []


def test_a_failure_is_told_to_requester_and_owner_once_it_is_shown(
    mailing: Told, mailbox: Mailbox
) -> None:
    job = mailing.world.add_job(JobKind.FIT)
    fail(mailing.world, job)
    fail(mailing.world, job)
    mailing.later(10)
    assert [who for who, _ in to(mailbox)] == ["olga", "paul"]
    assert mailing.states("paul") == ["job.failed email sent"]
    assert mailing.states("petra") == mailing.states("oscar") == mailing.states("adam") == []
    assert disclosed(mailing.world) == [("sent", "email", "user:paul", job)]


def test_each_attempt_to_send_is_disclosed_before_it_is_made(quiet: Told, hook: Receiver) -> None:
    quiet.add("paul", hook)
    seen: list[int] = []

    def away_at_first(arrival: Arrival) -> int:
        seen.append(len(disclosed(quiet.world)))
        return 503 if len(seen) == 1 else 204

    hook.answer = away_at_first
    job = quiet.world.add_job(JobKind.FIT)
    fail(quiet.world, job)
    quiet.later(10)
    quiet.later(3600)
    assert quiet.states("paul") == ["job.failed webhook sent"]
    assert disclosed(quiet.world) == [("sent", "webhook", "user:paul", job)] * 2
    assert seen == [1, 2]


def test_an_end_is_not_told_before_its_tick(engine: Engine, tmp_path: Path) -> None:
    """When a job ends depends on its rows."""
    here = told(engine, tmp_path, None, tick_s=60)
    here.world.clock.forward(1)
    fail(here.world, here.world.add_job(JobKind.FIT))
    here.turn()
    (row,) = here.world.gateway.rows(select(notifications))
    assert (row.addressed_at_ms, row.due_at_ms % 60_000) == (None, 0)
    here.later(60)
    assert here.world.gateway.rows(select(notifications))[0].addressed_at_ms is not None


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [
        (JobKind.FIT, JobState.SUCCEEDED, ["job.succeeded"]),
        (JobKind.FIT, JobState.CANCELLED, []),
        (JobKind.PROBE, JobState.SUCCEEDED, []),
        (JobKind.SAMPLE, JobState.FAILED, []),
        (JobKind.AUDIT, JobState.FAILED, ["job.failed"]),
    ],
)
def test_ends_that_are_told(
    quiet: Told, kind: JobKind, state: JobState, expected: list[str]
) -> None:
    code = FailureCode.INTERNAL if state is JobState.FAILED else None
    quiet.world.services.jobs.ending.end(quiet.world.add_job(kind), End(state=state, code=code))
    assert kinds(quiet.world) == expected


def test_access_is_looked_at_again_before_each_attempt(quiet: Told, hook: Receiver) -> None:
    """Between an attempt that failed and the next one, the reader has lost their role, or left."""
    for who in ("olga", "paul"):
        quiet.add(who, hook)
    hook.answer = lambda arrival: 500
    fail(quiet.world, quiet.world.add_job(JobKind.FIT))
    quiet.later(10)
    assert len(hook.arrivals) == 2
    gateway = quiet.world.gateway
    changes: dict[str, dict[str, Any]] = {
        "olga": {"roles": '["admin"]'},
        "paul": {"disabled": True},
    }
    for who, change in changes.items():
        own = update(users).where(users.c.name == who).values(**change)
        gateway.write(lambda connection, own=own: connection.execute(own))
    hook.answer = lambda arrival: 204
    quiet.later(100)
    assert len(hook.arrivals) == 2
    gateway.write(
        lambda connection: connection.execute(
            update(users).where(users.c.name == "paul").values(disabled=False)
        )
    )
    assert quiet.states("paul") == quiet.states("olga") == ["job.failed webhook dropped"]


def test_one_that_fails_is_tried_again_with_the_same_id(quiet: Told, hook: Receiver) -> None:
    endpoint = quiet.add("paul", hook)
    answers = iter([500, 503, 302, 204])
    hook.answer = lambda arrival: next(answers)
    fail(quiet.world, quiet.world.add_job(JobKind.FIT))
    quiet.later(10)
    waits = []
    for rest_s in (11, 44, 176):
        waits.append(quiet.deliveries("paul")[0]["answer"])
        quiet.later(rest_s)
        quiet.turn()
    assert len(hook.arrivals) == 4
    assert len({arrival.headers["webhook-id"] for arrival in hook.arrivals}) == 1
    (item,) = quiet.deliveries("paul")
    assert (item["state"], item["attempts"], item["endpoint"]) == ("sent", 4, "chat")
    assert waits == [
        "it answered 500", "it answered 503", "it answered 302; redirects are not followed",
    ]  # fmt: skip
    assert_signed(hook.arrivals[-1], endpoint["secret"])


def test_one_that_never_answers_is_given_up_and_shown_as_such(quiet: Told, hook: Receiver) -> None:
    quiet.add("paul", hook)
    hook.answer = lambda arrival: 500
    fail(quiet.world, quiet.world.add_job(JobKind.FIT))
    for _ in range(30):
        quiet.later(6 * 3600)
    (item,) = quiet.deliveries("paul")
    assert (item["state"], item["next_at"]) == ("given_up", None)
    assert 8 < item["attempts"] == len(hook.arrivals) < 25


def test_mail_waits_for_a_server_that_is_away(mailing: Told, mailbox: Mailbox) -> None:
    gateway = mailing.world.gateway
    fail(mailing.world, mailing.world.add_job(JobKind.FIT))
    settings = gateway.settings.model_copy(update={"smtp_port": free_port()})
    mailing.world.clock.forward(10)
    Delivery(replace(gateway, settings=settings)).turn()
    assert mailing.states("paul") == ["job.failed email waiting"]
    mailing.later(60)
    assert mailing.states("paul") == ["job.failed email sent"]


def test_a_refused_address_is_given_up_at_once(mailing: Told, mailbox: Mailbox) -> None:
    mailbox.refused["paul@hospital.example"] = "550 no such user"
    fail(mailing.world, mailing.world.add_job(JobKind.FIT))
    mailing.later(10)
    assert mailing.states("paul") == ["job.failed email given_up"]
    assert mailing.states("olga") == ["job.failed email sent"]


def test_what_is_turned_off_is_not_sent(mailing: Told, mailbox: Mailbox, hook: Receiver) -> None:
    mailing.add("paul", hook)
    choice = {"kind": "job.failed", "email": False, "webhook": True}
    mailing.ask("paul", "PUT", "/preferences", {"preferences": [choice]})
    fail(mailing.world, mailing.world.add_job(JobKind.FIT))
    mailing.later(10)
    assert mailing.states("paul") == ["job.failed webhook sent"]
    assert [who for who, _ in to(mailbox)] == ["olga"]


def test_a_budget_is_told_to_its_owner_as_it_is_passed(mailing: Told, mailbox: Mailbox) -> None:
    """Once for each mark; what a running job has charged is nobody's business yet."""
    mailing.turn()
    assert to(mailbox) == []
    ledger = mailing.world.gateway.ledger
    event = gaussian_steps(540)
    ledger.reserve("r", "job-1", namespace=NAMESPACE, grants=[], event=event, hold_s=60)
    lease = ledger.acquire("a", "job-1", worker="w", lease_s=60)
    ledger.charge("c", "job-1", lease.token, event)
    mailing.later(61)
    assert to(mailbox) == []
    ledger.commit("e", "job-1", lease.token)
    mailing.later(61)
    mailing.later(61)
    (only,) = to(mailbox)
    assert only[0] == "olga"
    assert only[1].endswith("% of the budget of patients is spent")


def test_a_grant_that_ends_is_told_a_week_and_a_day_before(mailing: Told, mailbox: Mailbox) -> None:
    now_ms = mailing.world.gateway.now_ms()
    change = update(grant_terms).values(expires_at_ms=now_ms + 10 * DAY_S * 1000)
    mailing.world.gateway.write(lambda connection: connection.execute(change))
    mailing.turn()
    assert to(mailbox) == []
    for days in (4, 1, 4.5):
        mailing.later(days * DAY_S)
    assert [who for who, _ in to(mailbox)] == ["olga", "olga", "paul", "paul"]
    assert "Your grant on patients ends on 2026-03-11" in to(mailbox)[-1][1]
    mailing.later(DAY_S)
    assert len(to(mailbox)) == 4


def test_a_launcher_that_stays_away_is_told_to_administrators(
    mailing: Told, mailbox: Mailbox
) -> None:
    world = mailing.world
    world.running(fit())
    world.launcher.away = True
    for _ in range(12):
        world.clock.forward(20)
        world.tick()
    mailing.turn()
    assert to(mailbox) == [("adam", "[taciturn] The launcher does not answer")]


def test_two_leaders_at_once_send_nothing_that_its_receiver_cannot_tell_apart(
    quiet: Told, hook: Receiver
) -> None:
    """Two leaders for a moment may send twice, with one id; they mark it once."""
    quiet.add("paul", hook)
    fail(quiet.world, quiet.world.add_job(JobKind.FIT))
    quiet.world.clock.forward(10)
    with ThreadPoolExecutor(2) as pool:
        for turn in [pool.submit(Delivery(quiet.world.gateway).turn) for _ in range(2)]:
            turn.result()
    assert len({arrival.headers["webhook-id"] for arrival in hook.arrivals}) == 1
    assert quiet.states("paul") == ["job.failed webhook sent"]


def test_a_message_holds_what_programs_need(quiet: Told, hook: Receiver) -> None:
    quiet.add("otto", hook)
    approval = asked(quiet.world)
    quiet.turn()
    body = json.loads(hook.arrivals[0].body)
    assert body["type"] == "approval.asked"
    assert body["id"] == hook.arrivals[0].headers["webhook-id"]
    assert body["url"] == f"https://tac.example/approvals/{approval}"
    assert body["data"]["requester"] == "paul"
    assert "SECRET" not in hook.arrivals[0].body.decode()


SENDER = """
import sys
from taciturn.server.bootstrap import open_gateway
from taciturn.server.notifications.delivery import Delivery
from taciturn.server.settings import Settings
Delivery(open_gateway(Settings())).turn()
"""


def test_killed_between_sending_and_marking_it_is_sent_again_with_the_same_id(
    quiet: Told, hook: Receiver, tmp_path: Path, root: Path
) -> None:
    """The receiver kills the sender as soon as it has the message."""
    gateway = quiet.world.gateway
    quiet.add("paul", hook)
    fail(quiet.world, quiet.world.add_job(JobKind.FIT))
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "src"),
        "TACITURN_DATABASE_URL": str(gateway.engine.url),
        "TACITURN_DATA_DIR": str(tmp_path),
        "TACITURN_LEDGER_KEY": gateway.seal_key.to_text(),
        "TACITURN_NOTIFICATION_NETWORKS": json.dumps(HERE),
    }
    processes: list[subprocess.Popen[bytes]] = []

    def kill(arrival: Arrival) -> int:
        if len(hook.arrivals) == 1:
            processes[0].send_signal(signal.SIGKILL)
            processes[0].wait(120)
        return 204

    hook.answer = kill
    for _ in range(2):
        processes.append(subprocess.Popen([sys.executable, "-c", SENDER], env=environment))
        processes[-1].wait(120)
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0]
    assert len(hook.arrivals) == 2
    assert len({arrival.headers["webhook-id"] for arrival in hook.arrivals}) == 1
    assert quiet.states("paul") == ["job.failed webhook sent"]
