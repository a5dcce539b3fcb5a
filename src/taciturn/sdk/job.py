"""A job of a gateway, from anywhere: its state, its events, its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from taciturn.errors import JobFailedError, SpecError
from taciturn.notebook import cards
from taciturn.sdk.listing import Listing
from taciturn.sdk.progress import WORDS, Progress, screen
from taciturn.sdk.stream import job_events
from taciturn.sdk.transport import Transport
from taciturn.wire.events import EventPage, NodeEvent, NumberedEvent, StateEvent
from taciturn.wire.jobs import JobKind, JobState, JobView
from taciturn.wire.machines import MachineUse

if TYPE_CHECKING:
    from taciturn.notebook.frame import PolicyFrame
    from taciturn.reports.privacy import Audit
    from taciturn.sdk.evaluation import RemoteEvaluation
    from taciturn.sdk.model import RemoteModel


Result: TypeAlias = "RemoteModel | PolicyFrame | RemoteEvaluation | Audit | None"
Reader: TypeAlias = Callable[[Transport, JobView], Result]
"""Function that reads the result of a job that has succeeded; see `sdk.results`."""


class Job:
    """A handle; the job itself goes on whether anybody holds one or not.

    Raises:
        GatewayError: any request can raise it, as of `taciturn.Client`.

    Examples:
        >>> job = taciturn.LLM("taciturn/tiny-medical").fit(data, target_epsilon=3, wait=False)
        >>> job.status.value  # from anywhere: client.job(id)
        'queued'
        >>> model = job.result()
    """

    def __init__(self, transport: Transport, view: JobView, reader: Reader) -> None:
        self.view = view
        self._transport = transport
        self._reader = reader

    @property
    def id(self) -> str:
        """Name by which `client.job(id)` finds it again.

        Examples:
            >>> client.job(job.id).id == job.id
            True
        """
        return self.view.id

    @property
    def status(self) -> JobState:
        """State, asked anew.

        Examples:
            >>> job.wait().status.value
            'succeeded'
        """
        return self.refresh().view.state

    @property
    def policy(self) -> str:
        """Policy of its result, in one line.

        Examples:
            >>> job.policy
            'DP (epsilon=3, delta=1e-06, unit=patient_id)'
        """
        return self.view.policy.text

    def refresh(self) -> Job:
        """Ask the gateway where it stands; the answer is in `view`.

        Examples:
            >>> job.refresh().view.kind.value
            'fit'
        """
        if not self.view.state.over:
            self.view = self._transport.get(f"jobs/{self.id}", JobView)
        return self

    def events(self, after: int | None = None) -> Iterator[NumberedEvent]:
        """Yield what it says, from the beginning or after an event's number, until it is over.

        A lost connection is taken up again where it broke off.

        Args:
            after: number of the last event that is known already.

        Examples:
            >>> [event.event.type for event in job.events()][:3]
            ['state', 'state', 'plan']
        """
        for event in job_events(self._transport, self.id, after):
            self._heed(event)
            yield event

    def machines(self) -> Listing[MachineUse]:
        """List the machines that it had and that are done with, with node-seconds and cost.

        A machine goes after its job is over, when nobody watches the job's events any more: ask
        again in some minutes.

        Examples:
            >>> len(job.machines())
            0
        """
        machines: list[MachineUse] = []
        page = self._events_after(0)
        while page:
            events = [item.event for item in page if isinstance(item.event, NodeEvent)]
            machines += [event.use for event in events if event.use is not None]
            page = self._events_after(page[-1].sequence)
        return Listing(machines)

    def _events_after(self, number: int) -> tuple[NumberedEvent, ...]:
        """A page of what it has said, also of what came after it was over."""
        answer = self._transport.send("GET", f"jobs/{self.id}/events", params={"after": number})
        return self._transport.read(EventPage, answer).items

    def wait(self, *, timeout_s: float | None = None, progress: bool | None = None) -> Job:
        """Wait until it is over, showing how far it is; Ctrl-C leaves it running.

        Args:
            timeout_s: seconds, after which waiting is given up, not the job.
            progress: False shows nothing; True also where nobody watches; by default a bar in
                terminals and notebooks.

        Raises:
            JobFailedError: it failed or was cancelled.
            TimeoutError: it was not over in time; it goes on.

        Examples:
            >>> job.wait(timeout_s=600, progress=False).view.state.value
            'succeeded'
        """
        try:
            self._watch(timeout_s, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped waiting; the job goes on. Come back with client.job({self.id!r}).wait() "
                f"or: taciturn job wait {self.id}"
            ) from None
        return self._checked()

    def result(self, *, timeout_s: float | None = None, progress: bool | None = None) -> Result:
        """Return what came of it, waiting as `wait` does: of a fit, the model.

        Args:
            timeout_s: give up waiting after so many seconds.
            progress: as of `wait`.

        Returns:
            Of a fit the model, of samples and records a frame, of an evaluation its figures, of an
            audit an `Audit`.

        Raises:
            JobFailedError: it failed or was cancelled.
            TimeoutError: it was not over in time; it goes on.

        Examples:
            >>> remote = job.result()
            >>> remote.policy == job.policy
            True
        """
        self.wait(timeout_s=timeout_s, progress=progress)
        return self._reader(self._transport, self.view)

    def fitted(
        self, *, timeout_s: float | None = None, progress: bool | None = None
    ) -> RemoteModel:
        """Return the model of a fit, waiting as `wait` does.

        Args:
            timeout_s: give up waiting after so many seconds.
            progress: as of `wait`.

        Raises:
            SpecError: the job is not a fit.
            JobFailedError: it failed or was cancelled.
            TimeoutError: it was not over in time; it goes on.

        Examples:
            >>> frame = job.fitted().sample(["The patient"])
        """
        if self.view.kind is not JobKind.FIT:
            raise SpecError(f"{self.id} is a job of kind {self.view.kind.value}, not a fit")
        return cast("RemoteModel", self.result(timeout_s=timeout_s, progress=progress))

    def download(self, name: str, folder: str | Path = ".") -> Path:
        """Write one of its released files into `folder`.

        Args:
            name: of the file, as a certificate or `view` lists it.
            folder: where it goes, under its own name.

        Returns:
            The path of the file.

        Raises:
            NotThereError: the job has released no such file.
            OutputError: the folder cannot be written.

        Examples:
            >>> path = job.wait().download("privacy_report.json", ".")
        """
        target = Path(folder).expanduser() / Path(name).name
        self._transport.download(f"jobs/{self.id}/files/{name}", target)
        return target

    def cancel(self) -> Job:
        """Stop it. What it has charged stays spent; what never ran is free again.

        Raises:
            ConflictError: it is over already.

        Examples:
            >>> job.cancel().view.state.value
            'cancelled'
        """
        response = self._transport.send("POST", f"jobs/{self.id}/cancel", key=f"cancel-{self.id}")
        self.view = self._transport.read(JobView, response)
        return self

    def _watch(self, timeout_s: float | None, progress: bool | None) -> None:
        if self.refresh().view.state.over:
            return
        private = self.view.request.get("target_epsilon") != "unlimited"
        status = Progress(self.id, self.view.kind.value, private, self.view.state)
        with screen(progress) as display:
            display.show(status)
            for event in job_events(self._transport, self.id, alive=self._deadline(timeout_s)):
                self._heed(event)
                status = status.after(event)
                display.show(status)

    def _heed(self, event: NumberedEvent) -> None:
        if isinstance(event.event, StateEvent):
            self.view = self.view.model_copy(update={"state": event.event.state})

    def _deadline(self, timeout_s: float | None) -> Callable[[], None]:
        """Raises TimeoutError when it is called after so long."""
        end = None if timeout_s is None else time.monotonic() + timeout_s

        def check() -> None:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"{self.id} is not over after {timeout_s:g} s; it goes on")

        return check

    def _checked(self) -> Job:
        """Raises JobFailedError unless it succeeded; the view is the final one."""
        self.view = self._transport.get(f"jobs/{self.id}", JobView)
        failure, state = self.view.failure, self.view.state
        if state is JobState.SUCCEEDED:
            return self
        words = failure.text if failure is not None else WORDS[state]
        if self.view.cost is not None:
            words += f"; {cost_words(self.view)}"
        raise JobFailedError(
            f"{self.id} {'was cancelled' if state is JobState.CANCELLED else 'failed'}: {words}",
            job=self.id,
            code=failure.code if failure is not None else state.value,
            incident=failure.incident if failure is not None else None,
        )

    def __repr__(self) -> str:
        view = self.view
        return f"<Job {view.id}: {view.kind.value}, {WORDS[view.state]}; {view.policy.text}>"

    def _repr_html_(self) -> str:
        title = f"{self.view.kind.value} {self.view.id}"
        return cards.card(title, self.policy, cards.facts(job_facts(self)))


def cost_words(view: JobView) -> str | None:
    """Return what a job takes of budgets, for people; None where it takes nothing."""
    cost = view.cost
    if cost is None:
        return None
    shares = f"{cost.share_of_budget:.1%} of the budget"
    if cost.share_of_grant is not None:
        shares += f", {cost.share_of_grant:.1%} of the grant"
    if cost.epsilon is None:
        return f"{shares}, spent and held"
    return f"epsilon={cost.epsilon:.3g} is spent at delta={cost.delta:g}: {shares}"


def job_facts(job: Job) -> dict[str, str]:
    """Return what there is to know about a job, for people."""
    view = job.view
    facts: dict[str, Any] = {
        "state": WORDS[view.state],
        "dataset": view.dataset,
        "base model" if view.kind is JobKind.FIT else "model": view.request.get("model"),
        "fitted model": view.model if view.kind is JobKind.FIT else None,
        "requested by": view.requester,
        "purpose": view.request.get("purpose"),
        "created": f"{view.created_at:%Y-%m-%d %H:%M} UTC",
        "approval": view.approval,
        "privacy": cost_words(view),
        "failure": view.failure and view.failure.text,
        "incident": view.failure and view.failure.incident,
    }
    return {name: str(value) for name, value in facts.items() if value is not None}
