"""Messages: who may know of an event, by the rules that hold when it is sent, and in which words.

They name what their reader sees in the console anyway, and lead there. No row, figure of rows,
token, or word that somebody else has written is in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, select

from taciturn.server.identity.approval_access import check_may_decide, may_see_approval
from taciturn.server.identity.holders import people, people_with
from taciturn.server.identity.job_access import watches_job
from taciturn.server.identity.namespace_access import grant_is_live, owns
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import approvals, grant_terms, jobs, policies, users
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import PolicyTerms
from taciturn.wire.events import FAILURES, FailureCode
from taciturn.wire.identity import Role
from taciturn.wire.notifications import NotificationKind

Subject = Mapping[str, Any]

TEST, CONFIRMATION = "test", "address.confirmation"
"""Kinds that their receiver has asked for, and that nobody can turn off."""

SETTINGS_PAGE = "/account/notifications"


@dataclass(frozen=True, slots=True)
class Message:
    """Words for one reader.

    Attributes:
        path: page of the console that it is about.
        facts: the same as fields, for programs.
    """

    title: str
    text: str
    path: str
    facts: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Topic:
    """Rules of one kind: the people who may be concerned, and the message for one of them, if they
    may know of it and it still matters."""

    candidates: Callable[[Connection, Subject], Iterable[str]]
    message: Callable[[Connection, Subject, Principal, int], Message | None]


def candidates(connection: Connection, kind: str, subject: Subject) -> list[str]:
    """Return the ids of people whom an event of this kind may concern, each once."""
    topic = _TOPICS.get(kind)
    return [] if topic is None else list(dict.fromkeys(topic.candidates(connection, subject)))


def message(
    connection: Connection, kind: str, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    """Return the message for a reader; None if they may not know of it, or it is past."""
    topic = _TOPICS.get(kind)
    return None if topic is None else topic.message(connection, subject, reader, now_ms)


def plain(text: object) -> str:
    """Return a name as one line of visible characters: whatever it is made of, it ends no header
    and begins no line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))[:300]


def _approval(connection: Connection, subject: Subject) -> Row[Any] | None:
    query = (
        select(
            approvals,
            jobs.c.requester_id,
            jobs.c.kind,
            jobs.c.dataset,
            jobs.c.plan,
            policies.c.owner_id,
            policies.c.terms,
            users.c.name.label("requester"),
        )
        .join(jobs, jobs.c.id == approvals.c.job_id)
        .join(policies, policies.c.namespace == approvals.c.namespace)
        .join(users, users.c.id == jobs.c.requester_id)
        .where(approvals.c.id == subject["approval"])
    )
    return connection.execute(query).first()


def _approvers(connection: Connection, subject: Subject) -> Iterable[str]:
    row = _approval(connection, subject)
    if row is None:
        return
    yield row.owner_id
    for holder in PolicyTerms.model_validate_json(row.terms).approvers:
        yield from people(connection, holder)


def _askers(connection: Connection, subject: Subject) -> Iterable[str]:
    row = _approval(connection, subject)
    return () if row is None else (row.requester_id, row.owner_id)


_REASONS = {
    "no_guarantee": "It would run without a privacy guarantee.",
    "exceeds_grant": "It needs more of the budget than the grant of who asks allows.",
}


def _request(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    row = _approval(connection, subject)
    if row is None or row.state != "open" or row.expires_at_ms <= now_ms:
        return None
    if Action.APPROVALS_DECIDE not in reader.actions:
        return None
    try:
        check_may_decide(reader, row)
    except ProblemError:
        return None
    plan = json.loads(row.plan or "{}")
    epsilon = (plan.get("privacy") or plan).get("epsilon")
    cost = "" if epsilon is None else f" It would cost epsilon {epsilon:.3g}."
    data = plain(row.dataset or row.namespace)
    return Message(
        f"{plain(row.requester)} asks for an approval on {data}",
        f"{plain(row.requester)} asks to run a job ({row.kind}) on {data}. "
        f"{_REASONS.get(row.reason, '')}{cost} Two people have to agree until "
        f"{moment(row.expires_at_ms):%Y-%m-%d %H:%M} UTC.",
        f"/approvals/{row.id}",
        {
            "approval": row.id,
            "job": row.job_id,
            "namespace": row.namespace,
            "dataset": row.dataset,
            "requester": row.requester,
            "reason": row.reason,
            "epsilon": epsilon,
        },
    )


_DECISIONS = {
    "approved": "was approved, and the job goes on",
    "rejected": "was rejected, and the job does not run",
}


def _decided(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    row = _approval(connection, subject)
    if row is None or Action.APPROVALS_READ not in reader.actions:
        return None
    taken_back = subject["state"] == "approved" and row.state not in ("approved", "used")
    if taken_back or not may_see_approval(reader, row):
        return None
    state, data = str(subject["state"]), plain(row.dataset or row.namespace)
    return Message(
        f"Approval on {data}: {state}",
        f"The approval that {plain(row.requester)} asked for, for a job ({row.kind}) on {data}, "
        f"{_DECISIONS[state]}.",
        f"/approvals/{row.id}",
        {
            "approval": row.id,
            "job": row.job_id,
            "namespace": row.namespace,
            "state": state,
        },
    )


def _job(connection: Connection, subject: Subject, reader: Principal | None) -> Row[Any] | None:
    query = (
        select(jobs, policies.c.owner_id, users.c.name.label("requester"))
        .outerjoin(policies, policies.c.namespace == jobs.c.namespace)
        .join(users, users.c.id == jobs.c.requester_id)
        .where(jobs.c.id == subject["job"])
    )
    if reader is not None:
        if Action.JOBS_READ not in reader.actions:
            return None
        query = query.where(watches_job(reader))
    return connection.execute(query).first()


def _job_people(connection: Connection, subject: Subject) -> Iterable[str]:
    row = _job(connection, subject, None)
    if row is not None:
        yield row.requester_id
        if row.owner_id is not None:
            yield row.owner_id


def _requester(connection: Connection, subject: Subject) -> Iterable[str]:
    row = _job(connection, subject, None)
    return () if row is None else (row.requester_id,)


def _job_and_auditors(connection: Connection, subject: Subject) -> Iterable[str]:
    yield from _job_people(connection, subject)
    yield from people_with(connection, Role.AUDITOR)


def _job_facts(row: Row[Any]) -> dict[str, str | float | None]:
    names = ("kind", "namespace", "dataset", "requester")
    return {"job": row.id, **{name: getattr(row, name) for name in names}}


def _of_job(row: Row[Any]) -> str:
    on = row.dataset or row.namespace
    return f"job ({row.kind}{'' if on is None else f' on {plain(on)}'})"


def _failed(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    row = _job(connection, subject, reader)
    if row is None:
        return None
    code = FailureCode(row.failure) if row.failure else FailureCode.INTERNAL
    return Message(
        f"A {_of_job(row)} has failed",
        f"The {_of_job(row)} of {plain(row.requester)} has failed: {FAILURES[code]}.",
        f"/jobs/{row.id}",
        {**_job_facts(row), "failure": code.value},
    )


def _succeeded(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    row = _job(connection, subject, reader)
    if row is None:
        return None
    return Message(
        f"A {_of_job(row)} is done",
        f"The {_of_job(row)} of {plain(row.requester)} is done.",
        f"/jobs/{row.id}",
        _job_facts(row),
    )


def _refuted(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    row = _job(connection, subject, reader)
    if row is None:
        return None
    return Message(
        f"An audit of a model of {plain(row.namespace)} found more than was promised",
        f"The {_of_job(row)} of {plain(row.requester)} has an audit whose lower bound on epsilon "
        "is above the epsilon that the model's report promises. Use the model no further before "
        "this is explained.",
        f"/jobs/{row.id}",
        _job_facts(row),
    )


def _owner(connection: Connection, subject: Subject) -> Iterable[str]:
    query = select(policies.c.owner_id).where(policies.c.namespace == subject["namespace"])
    return connection.execute(query).scalars().all()


def _owns(connection: Connection, subject: Subject, reader: Principal) -> bool:
    return any(owns(reader, owner_id) for owner_id in _owner(connection, subject))


def _spent(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    if Action.BUDGETS_READ not in reader.actions or not _owns(connection, subject, reader):
        return None
    namespace, percent = plain(subject["namespace"]), f"{subject['percent']:g}"
    return Message(
        f"{percent} % of the budget of {namespace} is spent",
        f"Of the privacy budget of {namespace}, epsilon {subject['epsilon']:g}, {percent} % or "
        "more is spent for good. What is spent never comes back.",
        "/ledger",
        {name: subject[name] for name in ("namespace", "percent", "epsilon")},
    )


def _grant_people(connection: Connection, subject: Subject) -> Iterable[str]:
    yield from people(connection, subject["holder"])
    yield from _owner(connection, subject)


def _ending(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    is_holder = subject["holder"] in reader.holders
    if Action.GRANTS_READ not in reader.actions:
        return None
    if not is_holder and not _owns(connection, subject, reader):
        return None
    query = select(grant_terms).where(
        grant_terms.c.namespace == subject["namespace"],
        grant_terms.c.holder == subject["holder"],
        grant_terms.c.expires_at_ms == subject["expires_at_ms"],
        grant_is_live(now_ms),
    )
    if connection.execute(query).first() is None:
        return None
    namespace, holder = plain(subject["namespace"]), plain(subject["holder"])
    ends = f"{moment(int(subject['expires_at_ms'])):%Y-%m-%d %H:%M} UTC"
    title = "Your grant" if is_holder else f"The grant of {holder}"
    return Message(
        f"{title} on {namespace} ends on {ends[:10]}",
        f"{title} on {namespace} ({holder}) ends on {ends}. No new job can draw on it after that, "
        "until the owner gives another one.",
        "/datasets",
        {"namespace": subject["namespace"], "holder": subject["holder"], "ends": ends},
    )


def _administrators(connection: Connection, subject: Subject) -> Iterable[str]:
    return people_with(connection, Role.ADMIN)


def _away(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    if Action.JOBS_OPERATE not in reader.actions:
        return None
    since = f"{moment(int(subject['since_ms'])):%Y-%m-%d %H:%M} UTC"
    return Message(
        "The launcher does not answer",
        f"The launcher has not answered since {since}. No job starts until it does; jobs that run "
        "go on. The gateway's log and `taciturn doctor` say more.",
        "/operations",
        {"since": since},
    )


def _no_candidates(connection: Connection, subject: Subject) -> Iterable[str]:
    return ()


def _test(
    connection: Connection, subject: Subject, reader: Principal, now_ms: int
) -> Message | None:
    return Message(
        "A message to try this out",
        f"{plain(reader.name)} has asked for this message. Notifications arrive here.",
        SETTINGS_PAGE,
    )


_KIND = NotificationKind
_TOPICS: Mapping[str, _Topic] = MappingProxyType(
    {
        _KIND.APPROVAL_ASKED: _Topic(_approvers, _request),
        _KIND.APPROVAL_DECIDED: _Topic(_askers, _decided),
        _KIND.JOB_FAILED: _Topic(_job_people, _failed),
        _KIND.JOB_SUCCEEDED: _Topic(_requester, _succeeded),
        _KIND.BUDGET_THRESHOLD: _Topic(_owner, _spent),
        _KIND.GRANT_ENDS: _Topic(_grant_people, _ending),
        _KIND.AUDIT_FINDING: _Topic(_job_and_auditors, _refuted),
        _KIND.LAUNCHER_AWAY: _Topic(_administrators, _away),
        TEST: _Topic(_no_candidates, _test),
    }
)
