"""Fine-tuning jobs: fits of the gateway's job service, asked for in OpenAI's words.

Whoever may ask, what it costs, who has to approve it and what is held is the job service's; nothing
of it is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from taciturn.server.catalog.datasets import Datasets
from taciturn.server.fine_tuning.answers import event_id
from taciturn.server.fine_tuning.requests import refusal, to_fit
from taciturn.server.identity.job_access import no_job
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.idempotency import digest_of
from taciturn.server.jobs.submission import Jobs
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import idempotency, jobs
from taciturn.server.timestamps import milliseconds
from taciturn.wire.events import NumberedEvent
from taciturn.wire.fine_tuning import NewFineTuningJob
from taciturn.wire.jobs import JobKind, JobState, JobView, RemoteFit
from taciturn.wire.values import Page

_NEWEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Translates between OpenAI's API and the job service."""

    jobs: Jobs
    datasets: Datasets

    def create(
        self, caller: Principal, request: NewFineTuningJob, key: str | None, is_retry: bool
    ) -> JobView:
        """Ask for a fit; raises ProblemError as submitting does, with `param` where one is wrong.

        OpenAI's clients send no Idempotency-Key. Without one, a request stands for itself: while
        its job is not over, or where the client says that it asks again, it is the same job.
        """
        try:
            columns = self.datasets.read(request.training_file, caller).columns or ()
        except ProblemError as error:
            raise ProblemError(error.code, error.detail, param="training_file") from None
        fit = to_fit(request, [column.name for column in columns])
        return self.jobs.submit(caller, fit, key or self._key(caller, fit, is_retry))

    def _key(self, caller: Principal, fit: RemoteFit, is_retry: bool) -> str:
        stem = f"fine-tuning-{digest_of(fit)}-"
        query = (
            select(idempotency.c.key, jobs.c.state)
            .join(jobs, jobs.c.id == idempotency.c.resource)
            .where(
                idempotency.c.user_id == caller.user_id,
                idempotency.c.key.startswith(stem, autoescape=True),
            )
        )
        numbers = {row.key.removeprefix(stem): row.state for row in self.jobs.gateway.rows(query)}
        earlier_jobs = [
            (int(number), state) for number, state in numbers.items() if number.isdecimal()
        ]
        if not earlier_jobs:
            return f"{stem}0"
        number, state = max(earlier_jobs)
        is_same = is_retry or not JobState(state).over
        return f"{stem}{number if is_same else number + 1}"

    def view(self, caller: Principal, job_id: str) -> JobView:
        """Return a fit; raises ProblemError `not_found` for all else."""
        job = self.jobs.view(caller, job_id)
        if job.kind is not JobKind.FIT:
            raise no_job(job_id)
        return job

    def page(self, caller: Principal, after: str | None, limit: int) -> Page[JobView]:
        """Return fits that the caller may know of, newest first, from the one after `after`."""
        position = None
        if after is not None:
            last = self.view(caller, after)
            position = f"{milliseconds(last.created_at)}:{last.id}"
        return self.jobs.page(caller, Paging(limit, position), None, JobKind.FIT)

    def cancel(self, caller: Principal, job_id: str) -> JobView:
        """End a fit; raises ProblemError `not_found`."""
        self.view(caller, job_id)
        return self.jobs.cancel(caller, job_id)

    def events(
        self, caller: Principal, job_id: str, after: str | None, limit: int
    ) -> tuple[tuple[NumberedEvent, ...], bool]:
        """Return events of a fit, newest first, from the one after `after`, and whether there are
        older ones."""
        self.view(caller, job_id)
        before = _NEWEST if after is None else _sequence(job_id, after)
        events = self.jobs.latest_events(caller, job_id, before, limit + 1)
        return events[:limit], len(events) > limit


def _sequence(job_id: str, after: str) -> int:
    number = after.rpartition("-")[2]
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise refusal("after", "it is no id of an event; give the id of the last one that you have")
    if after != event_id(job_id, int(number)):
        raise refusal("after", "it is the id of another job's event; give one of this job's")
    return int(number)
