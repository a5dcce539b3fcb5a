"""Jobs: planned, asked for, followed, ended."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import MAX_LIMIT, PageQuery, Paging
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.datasets import DatasetState, DatasetView
from taciturn.wire.events import (
    CountEvent,
    NodeEvent,
    NumberedEvent,
    ProgressEvent,
    StageEvent,
    StateEvent,
)
from taciturn.wire.jobs import DataRef, JobKind, JobState, JobView, PlanView, RemoteFit
from taciturn.wire.values import Name

router = APIRouter(route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.JOBS_READ))]
Creator = Annotated[Principal, Depends(Requires(Action.JOBS_CREATE))]
Canceller = Annotated[Principal, Depends(Requires(Action.JOBS_CANCEL))]

_STATES = {
    JobState.VALIDATING: "Being checked",
    JobState.AWAITING_APPROVAL: "Waits for two people to approve it",
    JobState.QUEUED: "Waits for a worker",
    JobState.PROVISIONING: "A worker is being started",
    JobState.RUNNING: "A worker has taken it",
    JobState.SUCCEEDED: "Done",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Cancelled",
}
_STAGES = {
    "loading": "Loads the base model",
    "reading": "Reads the rows",
    "training": "Trains",
    "resumed": "Goes on where an earlier worker was stopped",
    "generating": "Writes text",
    "scoring": "Scores",
    "releasing": "Releases the result",
}
_PADDED = "It ends at a time that is fixed beforehand, so that how long it takes tells nothing."
_MOST_EVENTS = 5_000
_PLAN_SHOWN = ("noise_multiplier", "steps", "batch_size", "learning_rate", "method", "rank")


@dataclass(slots=True)
class TimelineEntry:
    """A line of a job's timeline."""

    text: str
    at: datetime
    note: str | None = None


@dataclass(slots=True)
class JobPage:
    """Contents of a job's page.

    Attributes:
        step, steps, epsilon: of the newest progress.
        count: done and asked for, of jobs that count texts.
    """

    view: JobView
    timeline: list[TimelineEntry] = field(default_factory=list)
    step: int = 0
    steps: int = 0
    epsilon: float | None = None
    count: tuple[int, int] | None = None

    @property
    def over(self) -> bool:
        """True if nothing more happens."""
        return self.view.state.over

    @property
    def headline(self) -> str:
        """The newest line of the timeline."""
        return self.timeline[-1].text if self.timeline else _STATES[self.view.state]

    @property
    def model(self) -> str | None:
        """The model that a fit has made."""
        succeeded = self.view.kind is JobKind.FIT and self.view.state is JobState.SUCCEEDED
        return self.view.model if succeeded else None

    @property
    def request(self) -> dict[str, Any]:
        """The request, without what has a line of its own."""
        hidden = ("kind", "data", "prompts", "public_texts")
        return {
            name: value
            for name, value in self.view.request.items()
            if value is not None and name not in hidden
        }

    @property
    def plan(self) -> dict[str, Any]:
        """The figures of its plan that people compare."""
        plan = self.view.plan or {}
        return {
            name: value
            for name, value in plan.items()
            if isinstance(value, int | float | str) and not isinstance(value, bool)
        }

    def add(self, numbered: NumberedEvent) -> None:
        """Take one event into account."""
        event = numbered.event
        match event:
            case StateEvent():
                self.timeline.append(TimelineEntry(_STATES[event.state], numbered.at))
            case StageEvent():
                note = _PADDED if event.padded_s is not None else None
                self.timeline.append(TimelineEntry(_STAGES[event.stage], numbered.at, note))
            case NodeEvent():
                self.timeline.append(TimelineEntry(event.text, numbered.at))
            case ProgressEvent():
                self.step, self.steps, self.epsilon = event.step, event.steps, event.epsilon
            case CountEvent():
                self.count = (event.done, event.of)


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
    return page(
        request,
        "jobs.html",
        caller,
        items=services.jobs.page(caller, paging, state or None, kind or None),
        states=[state.value for state in JobState],
        kinds=[kind.value for kind in JobKind],
        chosen_state=state,
        chosen_kind=kind,
    )


@router.get("/jobs/{job_id}")
def read_job(request: Request, caller: Reader, services: Svc, job_id: str) -> Response:
    """Show one job."""
    return page(request, "job.html", caller, job=_job(services, caller, job_id))


@router.get("/jobs/{job_id}/progress")
def read_progress(request: Request, caller: Reader, services: Svc, job_id: str) -> Response:
    """Show how far a job is; its page asks again until it is over."""
    job = _job(services, caller, job_id)
    answer = page(request, "progress.html", caller, job=job)
    if job.over:
        answer.headers["HX-Refresh"] = "true"
    return answer


@router.post("/jobs/{job_id}/cancellations")
def cancel_job(caller: Canceller, services: Svc, job_id: str) -> Response:
    """End a job."""
    services.jobs.cancel(caller, job_id)
    return go_to(f"/jobs/{job_id}")


@router.get("/plan")
def read_plan(request: Request, caller: Creator, services: Svc, dataset: str = "") -> Response:
    """Show the form in which a fit is planned."""
    views = services.datasets.page(caller, "", MAX_LIMIT)
    ready = [view for view in views if view.state is DatasetState.READY]
    first = ready[0] if ready else None
    bases = services.base_models.list(Paging(limit=MAX_LIMIT)).items
    return page(
        request,
        "plan.html",
        caller,
        datasets=ready,
        bases=bases,
        chosen=dataset,
        **_column_fields(next((view for view in ready if view.name == dataset), first)),
    )


@router.get("/plan/columns")
def read_columns(request: Request, caller: Creator, services: Svc, dataset: Name) -> Response:
    """Show the fields that depend on the dataset."""
    view = services.datasets.read(dataset, caller)
    return page(request, "plan_columns.html", caller, **_column_fields(view))


def _column_fields(dataset: DatasetView | None) -> dict[str, Any]:
    columns = () if dataset is None else dataset.columns or ()
    names = [column.name for column in columns]
    texts = [column.name for column in columns if "string" in column.type]
    likely = "text" if "text" in names or not texts else texts[-1]
    quoted = '"' + likely.replace('"', '""') + '"'
    return {
        "columns": names,
        "text_field": likely,
        "example": f"lower({quoted}) AS text",
    }


@dataclass(frozen=True, slots=True)
class PlanForm:
    """The fields of that form."""

    dataset: Annotated[str, Form(max_length=64)]
    model: Annotated[str, Form(max_length=300)]
    text_field: Annotated[str, Form(max_length=200)]
    target_epsilon: Annotated[float, Form()]
    select: Annotated[str, Form(max_length=10_000)] = ""
    steps: Annotated[str, Form(max_length=9)] = ""
    batch_size: Annotated[str, Form(max_length=9)] = ""
    name: Annotated[str, Form(max_length=200)] = ""
    purpose: Annotated[str, Form(max_length=200)] = ""

    def fit(self) -> RemoteFit:
        """Return the request; raises ProblemError `invalid`."""
        optional = {
            name: value
            for name in ("steps", "batch_size", "name", "purpose")
            if (value := getattr(self, name))
        }
        try:
            return RemoteFit(
                model=self.model,
                data=DataRef(dataset=self.dataset, select=self.select or None),
                text_field=self.text_field,
                target_epsilon=self.target_epsilon,
                **optional,
            )
        except ValueError as error:
            first = getattr(error, "errors", lambda: [{"loc": (), "msg": "it is not valid"}])()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ProblemError("invalid", f"{place}: {first['msg']}") from None


Planned = Annotated[PlanForm, Depends()]


@router.post("/plan")
def make_plan(request: Request, caller: Creator, services: Svc, form: Planned) -> Response:
    """Show what a fit would be and cost; nothing is held."""
    plan = services.jobs.plan(caller, form.fit())
    return page(request, "plan_result.html", caller, plan=plan, **_plan_facts(plan))


@router.post("/jobs")
def ask_for_job(caller: Creator, services: Svc, form: Planned) -> Response:
    """Ask for the fit that was planned."""
    job = services.jobs.submit(caller, form.fit(), secrets.token_urlsafe(24))
    return go_to(f"/jobs/{job.id}")


def _plan_facts(plan: PlanView) -> dict[str, Any]:
    facts = {
        name.replace("_", " ").capitalize(): plan.plan[name]
        for name in _PLAN_SHOWN
        if plan.plan.get(name) is not None
    }
    worth = plan.worth
    return {"facts": facts, "worth": getattr(worth, "text", worth)}


def _job(services: Services, caller: Principal, job_id: str) -> JobPage:
    job = JobPage(services.jobs.view(caller, job_id))
    after = 0
    while after < _MOST_EVENTS:
        events = services.jobs.events(caller, job_id, after, MAX_LIMIT)
        for numbered in events:
            job.add(numbered)
            after = numbered.sequence
        if len(events) < MAX_LIMIT:
            break
    return job
