"""Jobs: listed, followed, ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.console.work.job_progress import JobProgress
from taciturn.server.console.work.live_jobs import progress_of
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.jobs import (
    ApprovalView,
    JobKind,
    JobState,
    JobView,
    ModelView,
    RemoteAudit,
    RemoteEvaluate,
    RemoteFit,
    RemoteSample,
    RemoteSynthesize,
)
from taciturn.wire.results import JobResult

router = APIRouter(route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.JOBS_READ))]
Canceller = Annotated[Principal, Depends(Requires(Action.JOBS_CANCEL))]

_SAMPLES = 10  # of a page; the file has all of them
_HIDDEN = ("kind", "data", "public_data", "prompts", "public_texts", "model", "purpose", "name")

_REQUESTS: dict[JobKind, type[BaseModel]] = {
    JobKind.FIT: RemoteFit,
    JobKind.SAMPLE: RemoteSample,
    JobKind.EVALUATE: RemoteEvaluate,
    JobKind.AUDIT: RemoteAudit,
    JobKind.SYNTHESIZE: RemoteSynthesize,
}


@dataclass(frozen=True, slots=True)
class JobLine:
    """A line of the list of jobs."""

    view: JobView
    now: datetime

    @property
    def epsilon(self) -> float | None:
        """Epsilon that it was planned to cost; None without a guarantee, or without cost."""
        return JobProgress(self.view).planned_epsilon

    @property
    def seconds(self) -> float | None:
        """Its duration so far; None before its first worker was started."""
        begin, end = self.view.started_at, self.now
        if begin is None:
            return None
        if self.view.state.over:
            end = self.view.updated_at
        return max(0.0, (end - begin).total_seconds())


@dataclass(frozen=True, slots=True)
class Deciders:
    """People who may approve what a job needs.

    Attributes:
        names: the owner of the data, and people and groups that its policy names.
    """

    approval: ApprovalView
    names: tuple[str, ...]


@router.get("/jobs")
def read_jobs(
    request: Request,
    caller: Reader,
    services: Svc,
    paging: PageQuery,
    state: Annotated[JobState | Literal[""], Query()] = "",
    kind: Annotated[JobKind | Literal[""], Query()] = "",
) -> Response:
    """Show the jobs that the caller may know of."""
    items = services.jobs.page(caller, paging, state or None, kind or None)
    now = datetime.fromtimestamp(services.gateway.now_ms() / 1000, UTC)
    filters = {name: str(value) for name, value in (("state", state), ("kind", kind)) if value}
    older = items.next_cursor and urlencode({**filters, "cursor": items.next_cursor})
    return page(
        request,
        "jobs.html",
        caller,
        lines=[JobLine(view, now) for view in items.items],
        models=_models(services, caller, items.items),
        older=older,
        first=paging.after is None,
        newest=urlencode(filters),
        states=[(state.value, state.value.replace("_", " ")) for state in JobState],
        kinds=[kind.value for kind in JobKind],
        chosen_state=state,
        chosen_kind=kind,
    )


@router.get("/jobs/{job_id}")
def read_job(request: Request, caller: Reader, services: Svc, job_id: str) -> Response:
    """Show one job."""
    job = progress_of(services, caller, job_id)
    view = job.view
    return page(
        request,
        "job.html",
        caller,
        job=job,
        models=_models(services, caller, [view]),
        deciders=_deciders(services, caller, view),
        result=_result(services, caller, view),
        asked=_choices(view),
        plan=_plain(view.plan or {}),
        tick_s=services.gateway.settings.tick_s,
    )


@router.get("/jobs/{job_id}/progress")
def read_progress(request: Request, caller: Reader, services: Svc, job_id: str) -> Response:
    """Show how far a job is, to a page that has lost its stream."""
    job = progress_of(services, caller, job_id)
    answer = page(request, "progress.html", caller, job=job)
    if job.over:
        answer.headers["HX-Refresh"] = "true"
    return answer


@router.post("/jobs/{job_id}/cancellations")
def cancel_job(caller: Canceller, services: Svc, job_id: str) -> Response:
    """End a job."""
    services.jobs.cancel(caller, job_id)
    return go_to(f"/jobs/{job_id}")


def _models(
    services: Services, caller: Principal, views: Iterable[JobView]
) -> Mapping[str, ModelView]:
    """Models that these jobs are about, where the caller may know of them."""
    ids = [view.model for view in views if view.model is not None]
    if not ids or Action.MODELS_READ not in caller.actions:
        return {}
    return services.models.among(caller, ids)


def _deciders(services: Services, caller: Principal, view: JobView) -> Deciders | None:
    """People who may approve a job that waits for it; None where none does, or the caller may not
    know."""
    if view.approval is None or view.state is not JobState.AWAITING_APPROVAL:
        return None
    try:
        approval = services.approvals.view(caller, view.approval)
        policy = services.policies.read(approval.namespace, caller)
    except ProblemError:
        return None
    holders = dict.fromkeys((f"user:{policy.owner}", *policy.approvers))
    own = f"user:{view.requester}"
    names = [
        f"the group {name}" if kind == "group" else name
        for kind, _, name in (holder.partition(":") for holder in holders if holder != own)
    ]
    return Deciders(approval, tuple(names))


def _result(services: Services, caller: Principal, view: JobView) -> JobResult | None:
    """Result of a job, if there is one and it is the caller's; a fit's is its model's page."""
    if view.state is not JobState.SUCCEEDED or view.kind is JobKind.FIT:
        return None
    try:
        return services.results.get(caller, view.id, most=_SAMPLES)
    except ProblemError:
        return None


def _choices(view: JobView) -> dict[str, Any]:
    """Choices of its requester that are not the usual ones, without those that have a
    line of their own."""
    kind = _REQUESTS.get(view.kind)
    usual = {} if kind is None else kind.model_fields
    return {
        name: value
        for name, value in view.request.items()
        if name not in _HIDDEN
        and value not in (None, (), [])
        and (name not in usual or value != usual[name].default)
    }


def _plain(plan: dict[str, Any]) -> dict[str, Any]:
    """Figures of a plan that people compare, those of its parts included."""
    parts = (plan, *(part for part in plan.values() if isinstance(part, dict)))
    return {
        name: value
        for part in parts
        for name, value in part.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
