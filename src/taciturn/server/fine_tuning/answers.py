"""Files, jobs, events and checkpoints in OpenAI's shape.

Everything here is made of what the gateway shows of them elsewhere to the same person: sizes of
private files, losses and numbers of tokens are not among that, so that they are 0 or null here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from taciturn.server.catalog.datasets import WHY_NOT_READY
from taciturn.server.fine_tuning.requests import TERMS
from taciturn.wire.datasets import DatasetState, DatasetView
from taciturn.wire.events import (
    FAILURES,
    CountEvent,
    JobEvent,
    NodeEvent,
    NumberedEvent,
    PlanEvent,
    ProgressEvent,
    StageEvent,
    StateEvent,
)
from taciturn.wire.jobs import JobState, JobView

STATUSES = {
    JobState.VALIDATING: "validating_files",
    JobState.AWAITING_APPROVAL: "validating_files",
    JobState.QUEUED: "queued",
    JobState.PROVISIONING: "queued",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
"""States of a job, and OpenAI's statuses. A job that waits for approvers is still being validated:
nothing is queued yet, and `taciturn.state` says what it waits for."""

_FILE_STATUSES = {
    DatasetState.PROBING: "uploaded",
    DatasetState.UNCONFIRMED: "uploaded",
    DatasetState.READY: "processed",
    DatasetState.REFUSED: "error",
}
_MESSAGES = {
    JobState.VALIDATING: "The request is checked and priced.",
    JobState.AWAITING_APPROVAL: "Two approvers have to agree before it may run: see GET "
    "/v1/jobs/{job}/approval.",
    JobState.QUEUED: "Its cost is held in the budget, and it waits for a worker.",
    JobState.PROVISIONING: "A worker is being started.",
    JobState.RUNNING: "A worker has taken the job.",
    JobState.SUCCEEDED: "The model is made; what was charged is spent.",
    JobState.CANCELLED: "It was cancelled; what was charged stays spent, what was not is free "
    "again.",
}


def file_answer(dataset: DatasetView) -> dict[str, Any]:
    """Return a dataset as a file. How many bytes it has is not known, and would tell of its rows:
    0."""
    why = WHY_NOT_READY.get(dataset.state)
    return {
        "id": dataset.name,
        "object": "file",
        "bytes": 0,
        "created_at": _seconds(dataset.created_at),
        "filename": dataset.name,
        "purpose": "fine-tune",
        "status": _FILE_STATUSES[dataset.state],
        "status_details": why,
        "expires_at": None,
        "taciturn": {
            "state": dataset.state.value,
            "namespace": dataset.namespace,
            "policy": dataset.policy.model_dump(),
            "privacy_unit": dataset.unit,
            "units": dataset.units,
        },
    }


def job_answer(job: JobView) -> dict[str, Any]:
    """Return a fit as a fine-tuning job; its model has the name that the chat API knows."""
    failure, asked_for = job.failure, job.request
    hyperparameters = _hyperparameters(asked_for)
    method = "dpo" if asked_for.get("objective") == "dpo" else "supervised"
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": _seconds(job.created_at),
        "finished_at": _seconds(job.updated_at) if job.state.over else None,
        "estimated_finish": None,
        "model": asked_for.get("model"),
        "fine_tuned_model": job.model,
        "organization_id": job.namespace or "",
        "status": STATUSES[job.state],
        "error": None
        if failure is None
        else {"code": failure.code, "message": failure.text, "param": None},
        "training_file": job.dataset,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "seed": asked_for.get("seed", 0),
        "user_provided_suffix": asked_for.get("name"),
        "integrations": [],
        "metadata": {},
        "hyperparameters": {
            name: hyperparameters[name]
            for name in ("n_epochs", "batch_size", "learning_rate_multiplier")
        },
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "taciturn": {
            "state": job.state.value,
            "requester": job.requester,
            "policy": job.policy.model_dump(),
            "plan": job.plan,
            "cost": None if job.cost is None else job.cost.model_dump(),
            "approval": job.approval,
        },
    }


def event_answer(job_id: str, event: NumberedEvent) -> dict[str, Any]:
    """Return an event; its data are those of the gateway's own event."""
    message, data = _message(job_id, event.event), event.event.model_dump(mode="json")
    is_metrics = isinstance(event.event, ProgressEvent)
    if isinstance(event.event, ProgressEvent):
        data |= {"total_steps": event.event.steps}
    return {
        "id": event_id(job_id, event.sequence),
        "object": "fine_tuning.job.event",
        "created_at": _seconds(event.at),
        "level": _level(event.event),
        "message": message,
        "type": "metrics" if is_metrics else "message",
        "data": data,
    }


def event_id(job_id: str, sequence: int) -> str:
    """Return the id of an event, which is the cursor of the page after it."""
    return f"ftevent-{job_id}-{sequence}"


def checkpoint_answers(job: JobView) -> list[dict[str, Any]]:
    """Return the checkpoints that were released: the model, once it is there.

    Those between are for resuming alone: each would be another release. Its metrics are the steps
    of the plan and the guarantee; losses on private rows are nobody's.
    """
    if job.state is not JobState.SUCCEEDED or job.model is None:
        return []
    plan = job.plan or {}
    privacy = plan.get("privacy") or {}
    metrics = {"step": plan.get("steps", 0)}
    metrics |= {name: privacy[name] for name in ("epsilon", "delta") if name in privacy}
    return [
        {
            "id": f"ftckpt-{job.id}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": _seconds(job.updated_at),
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": job.model,
            "step_number": plan.get("steps", 0),
            "metrics": metrics,
            "taciturn": {"policy": job.policy.model_dump()},
        }
    ]


def listed(items: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """Return a page as OpenAI's clients read it."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def _hyperparameters(fields: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAI's hyperparameters and the gateway's terms, as far as they were set."""
    epochs = fields.get("epochs")
    values: dict[str, Any] = {
        "n_epochs": "auto" if epochs is None else int(epochs) if epochs % 1 == 0 else epochs,
        "batch_size": fields.get("batch_size") or "auto",
        "learning_rate_multiplier": "auto",
    }
    if fields.get("objective") == "dpo":
        values["beta"] = fields.get("beta")
    return values | {name: fields[name] for name in TERMS if fields.get(name) is not None}


def _message(job_id: str, event: JobEvent) -> str:
    match event:
        case StateEvent(state=JobState.FAILED, code=code):
            return "It has failed." if code is None else f"It has failed: {FAILURES[code]}."
        case StateEvent(state=state):
            return _MESSAGES[state].format(job=job_id)
        case StageEvent(stage=stage):
            return f"The worker has begun: {stage.value}."
        case PlanEvent(plan=plan):
            return f"The plan has {plan.steps} steps."
        case ProgressEvent(step=step, steps=steps):
            return f"Step {step} of {steps}."
        case CountEvent(done=done, of=of):
            return f"{done} of {of}."
        case NodeEvent(text=text):
            return text


def _level(event: JobEvent) -> str:
    if isinstance(event, StateEvent) and event.state is JobState.FAILED:
        return "error"
    is_cancelled = isinstance(event, StateEvent) and event.state is JobState.CANCELLED
    return "warn" if is_cancelled else "info"


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
