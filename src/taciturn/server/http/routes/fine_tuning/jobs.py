"""OpenAI's fine-tuning jobs: the gateway's fits, for OpenAI's clients."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request

from taciturn.server.fine_tuning.answers import (
    checkpoint_answers,
    event_answer,
    job_answer,
    listed,
)
from taciturn.server.fine_tuning.requests import refusal
from taciturn.server.http.access import Svc
from taciturn.server.http.routes.jobs import Canceller, Creator, Key, Reader
from taciturn.server.http.routes.openai import OpenAIRoute
from taciturn.server.paging import MAX_LIMIT
from taciturn.server.problems import ProblemError
from taciturn.wire.fine_tuning import NewFineTuningJob

router = APIRouter(tags=["OpenAI"], prefix="/fine_tuning/jobs", route_class=OpenAIRoute)

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items of a page.")]
After = Annotated[
    str | None, Query(max_length=100, description="Id of the last item of the page before.")
]
RetryCount = Annotated[
    int | None,
    Header(alias="x-stainless-retry-count", description="From OpenAI's clients: asked again."),
]


@router.post("")
def create_fine_tuning_job(
    job: NewFineTuningJob,
    caller: Creator,
    svc: Svc,
    idempotency_key: Key = None,
    retry_count: RetryCount = None,
) -> dict[str, Any]:
    """Ask for a fit with a guarantee: `target_epsilon` is required, beside the hyperparameters or
    in `metadata`. It is checked, priced and held in the budget before this returns. Without an
    Idempotency-Key, the same request is the same job until that is over."""
    return job_answer(svc.fine_tuning.create(caller, job, idempotency_key, bool(retry_count)))


@router.get("")
def list_fine_tuning_jobs(
    request: Request, caller: Reader, svc: Svc, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """One's own fits; owners see those of their namespaces, auditors all. Newest first."""
    if any(name.startswith("metadata") for name in request.query_params):
        raise refusal("metadata", "the gateway keeps no labels to choose jobs by; leave it out")
    page = svc.fine_tuning.page(caller, after, limit)
    return listed([job_answer(job) for job in page.items], page.next_cursor is not None)


@router.get("/{job_id}")
def read_fine_tuning_job(job_id: str, caller: Reader, svc: Svc) -> dict[str, Any]:
    """A fit, and where it stands. While it waits for approval its status is `validating_files`."""
    return job_answer(svc.fine_tuning.view(caller, job_id))


@router.post("/{job_id}/cancel")
def cancel_fine_tuning_job(job_id: str, caller: Canceller, svc: Svc) -> dict[str, Any]:
    """End a fit. What it has charged stays spent, what it has not is free again."""
    return job_answer(svc.fine_tuning.cancel(caller, job_id))


@router.post("/{job_id}/pause")
@router.post("/{job_id}/resume")
def pause_fine_tuning_job(job_id: str, caller: Canceller, svc: Svc) -> None:
    """Refuse: a fit that waits would go on holding its budget."""
    svc.fine_tuning.view(caller, job_id)
    raise ProblemError(
        "invalid",
        "a fit is not paused: it would go on holding its budget, and nobody else could spend it. "
        "Cancel it; what it has not charged is free again",
    )


@router.get("/{job_id}/events")
def list_fine_tuning_events(
    job_id: str, caller: Reader, svc: Svc, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Events of a fit, newest first. Times are rounded up to the gateway's tick."""
    events, has_more = svc.fine_tuning.events(caller, job_id, after, limit)
    return listed([event_answer(job_id, event) for event in events], has_more)


@router.get("/{job_id}/checkpoints")
def list_fine_tuning_checkpoints(
    job_id: str, caller: Reader, svc: Svc, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """The released model, once it is there: there is no other checkpoint to be had."""
    checkpoints = checkpoint_answers(svc.fine_tuning.view(caller, job_id))
    return listed([] if after is not None else checkpoints[:limit], False)
