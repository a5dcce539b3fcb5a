"""The start page: what waits for its reader and what runs, by what they may do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, job_name, page, share
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.services import Services
from taciturn.server.timestamps import moment
from taciturn.wire.datasets import BudgetView
from taciturn.wire.identity import Role
from taciturn.wire.jobs import ApprovalView

router = APIRouter(route_class=PageRoute)

_FEW = Paging(limit=8)
_ONE = Paging(limit=1)
_BUDGETS = 6
NEARLY_SPENT = 0.8
CHECK_DAYS = 7


@dataclass(frozen=True, slots=True)
class Line:
    """Something that waits, and the page where it is settled.

    Attributes:
        at: when it came up, or will.
    """

    path: str
    title: str
    note: str = ""
    at: datetime | None = None
    badge: str = ""
    tone: Literal["", "good", "warn", "bad"] = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A first step on a new gateway; some are done in a terminal alone, and have no page."""

    title: str
    note: str
    path: str | None = None
    command: str | None = None


@router.get("/")
def read_home(
    request: Request,
    caller: Annotated[Principal, Depends(Requires(Action.SELF_READ))],
    services: Svc,
) -> Response:
    """Show what waits for the caller, and what runs."""
    budgets = _budgets(services, caller)
    waiting = [
        *_approvals(services, caller),
        *_outages(services, caller),
        *_failures(services, caller),
        *_confirmations(services, caller),
        *_spent(services, caller),
        *_endings(services, caller),
        *_checks(services, caller),
    ]
    follows = Action.JOBS_READ in caller.actions
    return page(
        request,
        "home.html",
        caller,
        waiting=waiting,
        running=services.overview.current(caller) if follows else (),
        budgets=budgets,
        steps=list(_first_steps(services, caller)),
        nearly_spent=NEARLY_SPENT,
    )


def _approvals(services: Services, caller: Principal) -> Iterator[Line]:
    if Action.APPROVALS_READ not in caller.actions or caller.has(Role.AUDITOR):
        return
    for item in services.approvals.page(caller, _FEW, "open").items:
        path = f"/approvals/{item.id}"
        what = f"{_exception(item)} on {item.dataset or item.namespace}"
        count = f"{len(item.approved_by)} of {item.needed} have approved"
        if item.requester == caller.name:
            yield Line(path, f"Your request for {what}", count, item.created_at, "waits", "warn")
        elif Action.APPROVALS_DECIDE in caller.actions and caller.name not in item.approved_by:
            title = f"{item.requester} asks for {what}"
            yield Line(path, title, item.purpose or count, item.created_at, "to decide", "warn")


def _exception(item: ApprovalView) -> str:
    no_guarantee = item.reason == "no_guarantee"
    return "a fit without any guarantee" if no_guarantee else "more than the grant allows"


def _outages(services: Services, caller: Principal) -> Iterator[Line]:
    if Action.GATEWAY_READ not in caller.actions:
        return
    since_ms = services.outage.since_ms
    if since_ms is not None:
        title, note = "Workers cannot be started", "The launcher does not answer. Jobs wait."
        yield Line("/operations", title, note, moment(since_ms), "outage", "bad")
    backup = services.operations.backup()
    if backup.old:
        title = "No backup is known" if backup.at is None else "The last backup is old"
        yield Line("/settings", title, backup.text, backup.at, "backup", "warn")


def _failures(services: Services, caller: Principal) -> Iterator[Line]:
    if Action.JOBS_READ not in caller.actions:
        return
    for job in services.overview.failed(caller):
        what = job.dataset or job.model or "public texts"
        title = f"Your {job_name(job.kind).lower()} of {what} failed"
        note = "" if job.failure is None else job.failure.text
        yield Line(f"/jobs/{job.id}", title, note, job.updated_at, "failed", "bad")


def _confirmations(services: Services, caller: Principal) -> Iterator[Line]:
    if Action.DATASETS_WRITE not in caller.actions:
        return
    for name in services.overview.unconfirmed(caller):
        note = "A worker has found columns. Nobody else sees them before you confirm."
        yield Line(f"/datasets/{name}", f"Confirm the columns of {name}", note, None, "columns")


def _spent(services: Services, caller: Principal) -> Iterator[Line]:
    if not _watches_budgets(caller):
        return
    shares = services.budgets.nearly_spent(caller, 1 - NEARLY_SPENT, _BUDGETS)
    for namespace, left in shares.items():
        title = f"The budget {namespace} is nearly spent"
        note = f"{share(left)} of it are left for new jobs."
        yield Line(f"/policies/{namespace}", title, note, None, f"{share(left)} left", "warn")


def _endings(services: Services, caller: Principal) -> Iterator[Line]:
    if Action.GRANTS_READ not in caller.actions:
        return
    for grant in services.overview.ending_grants(caller):
        own = grant.holder in caller.holders
        title = "Your grant" if own else f"The grant of {grant.holder.partition(':')[2]}"
        note = f"It is for {grant.namespace}. After it ends, no new job can use it."
        path = f"/policies/{grant.namespace}"
        yield Line(path, f"{title} ends", note, grant.expires_at, "grant ends", "warn")


def _checks(services: Services, caller: Principal) -> Iterator[Line]:
    if Action.AUDIT_LOG_READ not in caller.actions:
        return
    checked_at = services.ledger_view.checked_at()
    now = moment(services.gateway.now_ms())
    if checked_at is None or now - checked_at > timedelta(days=CHECK_DAYS):
        title = "Check the chains of the ledger"
        note = (
            "The audit log knows of no earlier check."
            if checked_at is None
            else f"The last check is more than {CHECK_DAYS} days ago."
        )
        yield Line("/ledger", title, note, checked_at, "check due", "warn")


def _budgets(services: Services, caller: Principal) -> Sequence[BudgetView]:
    if not _watches_budgets(caller):
        return ()
    return services.budgets.page(caller, Paging(limit=_BUDGETS)).items


def _watches_budgets(caller: Principal) -> bool:
    return Action.BUDGETS_READ in caller.actions and not caller.has(Role.AUDITOR)


def _first_steps(services: Services, caller: Principal) -> Iterator[Step]:
    """Yield what to do first, by role, while there is nothing here yet."""
    if Action.USERS_WRITE in caller.actions and len(services.users.list(Paging(limit=2)).items) < 2:
        yield Step(
            "Add people",
            "An owner registers data, a practitioner fits models, an auditor checks both. Each "
            "sets a password through a link that you hand over.",
            "/people",
        )
        yield Step(
            "Say where data may be",
            "Nothing can be registered outside of the folders and buckets that you allow an owner.",
            "/people",
        )
        yield Step(
            "Choose what may be fitted", "One small model is there for trials.", "/base-models"
        )
    if Action.DATASETS_READ not in caller.actions or services.datasets.page(caller, "", 1):
        return
    if Action.DATASETS_WRITE in caller.actions:
        yield Step(
            "Register your first dataset",
            "The rows stay where they are. You say what one protected person is, and how large the "
            "budget is that all jobs share.",
            "/datasets",
        )
    elif Action.JOBS_CREATE in caller.actions:
        yield Step(
            "Ask a data owner for a grant",
            "You see a dataset once its owner lets you spend a part of its budget. Tell them your "
            f"name here, {caller.name}.",
        )
        yield Step(
            "Try a plan in a terminal meanwhile",
            "It needs no data and costs nothing.",
            command="taciturn plan --help",
        )
    elif Action.AUDIT_LOG_READ in caller.actions:
        yield Step(
            "Nothing is here to check yet",
            "Once an owner has opened a budget, download the anchors of the ledger and keep them "
            "where nobody here can write. The audit log runs already.",
            "/audit-log",
        )
