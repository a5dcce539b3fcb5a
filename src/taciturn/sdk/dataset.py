"""A dataset behind a gateway: its terms, its preview, what may be asked of it. Never its rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from taciturn.errors import ConflictError, SpecError
from taciturn.notebook.cards import budget_bar, budget_line, card, facts, muted, table
from taciturn.planning.plan import TimeChoice, TrainingPlan
from taciturn.sdk.job import Job, Reader
from taciturn.sdk.progress import duration
from taciturn.sdk.requests import body_of, request
from taciturn.sdk.transport import Transport, new_key
from taciturn.spec import FitFields
from taciturn.wire.datasets import (
    BudgetView,
    DatasetState,
    DatasetView,
    GrantView,
    PreviewView,
    Selection,
    StatedColumn,
    StatedColumns,
)
from taciturn.wire.jobs import DataRef, JobKind, JobView, Part, PlanView, RemoteFit

if TYPE_CHECKING:
    from taciturn.notebook.frame import PolicyFrame

_SHOWN_ROWS = 5


@dataclass(frozen=True, slots=True, repr=False)
class Quote:
    """Plan and price of a fit, before anything is held.

    Attributes:
        view: the gateway's answer: plan, price, and what it would leave of the budget.

    Examples:
        >>> quote = data.plan("taciturn/tiny-medical", target_epsilon=3)
        >>> quote.policy
        'DP (epsilon=3, delta=1e-06, unit=patient_id)'
    """

    view: PlanView

    @property
    def plan(self) -> TrainingPlan:
        """Noise, steps, learning rate ...: what would run.

        Examples:
            >>> data.plan("taciturn/tiny-medical", target_epsilon=3).plan.steps
            4
        """
        return TrainingPlan.model_validate(self.view.plan)

    @property
    def policy(self) -> str:
        """Policy of the model that would come of it, in one line.

        Examples:
            >>> data.plan("taciturn/tiny-medical", target_epsilon=3).policy
            'DP (epsilon=3, delta=1e-06, unit=patient_id)'
        """
        return self.view.policy.text

    @property
    def verdict(self) -> str:
        """Verdict in one line: could it start?

        Examples:
            >>> data.plan("taciturn/tiny-medical", target_epsilon=3).verdict
            'there is room for it'
        """
        if self.view.needs_approval is not None:
            return f"two people have to approve it: {self.view.needs_approval}"
        return "there is room for it" if self.view.admitted else "the budget has no room for it"

    def facts(self) -> dict[str, str]:
        """Its figures, for people.

        Examples:
            >>> data.plan("taciturn/tiny-medical", target_epsilon=3).facts()["share of the budget"]
            '30.0%'
        """
        plan, view = self.plan, self.view
        rows = {
            "units, batch, steps": f"{plan.n_units}, {plan.batch_size}, {plan.steps}",
            "method": plan.adapter.method,
        }
        if plan.privacy is not None:
            rows["noise multiplier"] = f"{plan.privacy.noise_multiplier:.4g}"
        if view.share_of_budget is not None:
            rows["share of the budget"] = f"{view.share_of_budget:.1%}"
        if view.share_of_grant is not None:
            rows["share of your grant"] = f"{view.share_of_grant:.1%}"
        left, after = view.left_of_budget, view.left_of_budget_after
        if left is not None and after is not None:
            rows["left of the budget"] = f"{left:.1%} now, {max(after, 0):.1%} with it"
        if view.public_data is not None:
            text = view.public_data
            rows["public data, not covered"] = f"{text.name} ({text.licence}; {text.origin})"
        if view.duration is not None:
            rows["training takes"] = f"{duration(view.duration.seconds)} ({view.duration.basis})"
        if view.worth is not None:
            rows["worth"] = view.worth.text
            rows["its basis"] = view.worth.basis
        if view.other_times:
            rows["more or less time"] = "; ".join(map(_bought, view.other_times))
        return rows

    def __repr__(self) -> str:
        lines = [f"policy: {self.policy}", *(f"{k}: {v}" for k, v in self.facts().items())]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        return card("plan", self.policy, facts(self.facts()), muted(self.verdict))


def _bought(choice: TimeChoice) -> str:
    worth = "worth not known" if choice.share is None else f"worth about {choice.share:.0%}"
    times = "this plan" if choice.times == 1 else f"{choice.times:g} times the time"
    return (
        f"{times}: batch {choice.batch_size}, {choice.steps} steps, remaining noise "
        f"{choice.remaining_noise:.3g}, {worth}"
    )


@dataclass(frozen=True, slots=True, repr=False)
class RemoteDataset:
    """Rows that stay where they are, how they are prepared, and which part of them is meant.

    Immutable: `select` and `split` give new ones.

    Attributes:
        view: what the gateway says of it: unit, number of units, columns, policy.
        transport: connection to the gateway.
        ref: the reference that goes into requests: name, `select` and part.
        reader: function that reads results of jobs.
        selected: the preview as `select` makes it; None without.

    Raises:
        GatewayError: any request can raise it, as of `taciturn.Client`.

    Examples:
        >>> data = client.dataset("phee")
        >>> data.name
        'phee'
    """

    view: DatasetView
    transport: Transport = field(compare=False)
    ref: DataRef
    reader: Reader = field(compare=False)
    selected: PreviewView | None = None

    @classmethod
    def of(cls, transport: Transport, view: DatasetView, reader: Reader) -> RemoteDataset:
        """Return the whole dataset, as it is.

        Args:
            transport: connection to the gateway.
            view: what the gateway says of it.
            reader: function that reads results of jobs.

        Examples:
            >>> from taciturn.sdk.dataset import RemoteDataset
            >>> RemoteDataset.of(client.transport, data.view, data.reader) == data
            True
        """
        return cls(view, transport, DataRef(dataset=view.name), reader)

    @property
    def name(self) -> str:
        """Name at the gateway.

        Examples:
            >>> data.name
            'phee'
        """
        return self.view.name

    @property
    def policy(self) -> str:
        """Policy of its use, in one line.

        Examples:
            >>> data.policy
            'DP, at most epsilon=8 for all'
        """
        return self.view.policy.text

    def wait(self, timeout_s: float = 600.0) -> RemoteDataset:
        """Wait until a worker has looked at it: as it is then, ready, or waiting for `confirm`.

        Args:
            timeout_s: give up waiting after so many seconds.

        Raises:
            ConflictError: it cannot be used; why, as far as the probe's job says it.
            TimeoutError: nobody has looked in time.

        Examples:
            >>> data.wait().view.state.value
            'ready'
        """
        end = time.monotonic() + timeout_s
        view = self.view
        while view.state is DatasetState.PROBING:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} is still being looked at after {timeout_s:g} s")
            self.transport.sleep(1.0)
            view = self.transport.get(f"datasets/{self.name}", DatasetView)
        if view.state is DatasetState.REFUSED:
            raise ConflictError(f"{self.name} cannot be used: {self._refusal()}", code="refused")
        return replace(self, view=view)

    def _refusal(self) -> str:
        """Say why the newest probe failed: maybe no worker has seen the rows at all."""
        unseen = ("launch", "outage", "lost", "expired", "time")
        for probe in self.transport.pages("jobs", JobView, {"kind": JobKind.PROBE}):
            if probe.dataset == self.name and probe.failure is not None:
                if probe.failure.code in unseen:
                    return f"{probe.failure.text} (probe {probe.id})"
                break
        return (
            "a worker could not or may not read it, or found units that are null; its owner finds "
            "more with: taciturn job list --kind probe. If it is CSV without a line of names: "
            f"taciturn dataset confirm {self.name} --no-header --columns ..."
        )

    def confirm(
        self, columns: Sequence[str] | None = None, *, header: bool | None = None
    ) -> RemoteDataset:
        """Say, as its owner, that what a worker found are names and no values of a row: then it is
        ready, and whoever may use it sees them.

        Args:
            columns: names of all columns; by default those of `view.found`, with their types.
            header: False if text files have no line of names, so that the first line is a row; a
                worker then looks again, which `wait` waits for.

        Raises:
            SpecError: nothing was found that could be confirmed.
            ConflictError: they are not what was found.

        Examples:
            >>> unconfirmed = client.dataset("unconfirmed")
            >>> unconfirmed.confirm().view.state.value
            'ready'
        """
        candidates = self.view.found
        if columns is not None:
            stated_columns = tuple(request(StatedColumn, name=name) for name in columns)
        elif header is not None and header != self.view.header:
            stated_columns = None
        elif candidates is None:
            raise SpecError(
                f"{self.name} is {self.view.state.value}: nothing of its columns is to be confirmed"
            )
        else:
            stated_columns = tuple(
                StatedColumn(**column.model_dump()) for column in candidates.columns
            )
        header = self.view.header if header is None else header
        body = body_of(request(StatedColumns, columns=stated_columns, header=header))
        response = self.transport.send("PUT", f"datasets/{self.name}/columns", body=body)
        return replace(self, view=self.transport.read(DatasetView, response))

    def preview(self) -> PolicyFrame:
        """Rows like the real ones, none of them real; with `select`, as that makes them.

        Examples:
            >>> data.preview().attrs["policy"]
            'mock (invented rows)'
        """
        import pandas as pd

        from taciturn.notebook.frame import with_policy

        preview = self._preview()
        columns = [column.name for column in preview.columns]
        frame = pd.DataFrame(list(preview.rows), columns=columns or None)
        return with_policy(frame, preview.policy.text)

    def select(self, select: str) -> RemoteDataset:
        """The same rows, prepared: row-wise SQL expressions, tried on the preview at once.

        Args:
            select: expressions over the columns, as SQL's SELECT takes them.

        Raises:
            InvalidRequestError: not row-wise, a column is not there, or the preview refutes it.

        Examples:
            >>> selected = data.select("id, json_extract_string(text, '$.note') AS text")
            >>> selected.ref.select
            "id, json_extract_string(text, '$.note') AS text"
        """
        if self.ref.select is not None:
            raise SpecError("a selection was made already; write one that does both")
        response = self.transport.send(
            "POST", f"datasets/{self.name}/selections", body=Selection(select=select)
        )
        selected = self.transport.read(PreviewView, response)
        ref = self.ref.model_copy(update={"select": select})
        return replace(self, ref=ref, selected=selected)

    def split(self, test: float = 0.1) -> tuple[RemoteDataset, RemoteDataset]:
        """(train, test): about `test` of the units are held out, always the same ones.

        Which unit is where is decided by a hash under a key that only workers have.

        Args:
            test: share of the units that is held out, between 0 and 1.

        Raises:
            SpecError: it is a part already, or the share is outside its bound.

        Examples:
            >>> train, held_out = data.split(test=0.1)
            >>> held_out.ref.part.side
            'test'
        """
        if self.ref.part is not None:
            raise SpecError(f"this is the {self.ref.part.side} part already; split the whole")
        parts = [request(Part, side=side, test_share=test) for side in ("train", "test")]
        train, held_out = (
            replace(self, ref=self.ref.model_copy(update={"part": part})) for part in parts
        )
        return train, held_out

    def plan(self, model: str, **fields: Unpack[FitFields]) -> Quote:
        """Return what `fit` would be and cost; holds and spends nothing.

        Args:
            model: base model, by the name that the gateway knows it by.
            fields: the fields of `taciturn.spec.FitSpec`, as of `LLM.fit`.

        Raises:
            SpecError: a field that is the dataset's own: `select` or `privacy_unit`.

        Examples:
            >>> print(data.plan("taciturn/tiny-medical", target_epsilon=3).verdict)
            there is room for it
        """
        body = body_of(self._request(model, {}, dict(fields)))
        response = self.transport.send("POST", "plans", body=body)
        return Quote(self.transport.read(PlanView, response))

    def fit(
        self,
        model: str,
        *,
        name: str | None = None,
        purpose: str | None = None,
        **fields: Unpack[FitFields],
    ) -> Job:
        """Start a fit of a base model on these rows; the job is somebody's who waits or not.

        Args:
            name: what the fitted model is called.
            purpose: one line for whoever has to approve it.
            model: base model, by the name that the gateway knows it by.
            fields: the fields of `taciturn.spec.FitSpec`, as of `LLM.fit`.

        Raises:
            RemoteBudgetError: there is no room for it. Nothing was spent.

        Examples:
            >>> job = data.fit("taciturn/tiny-medical", target_epsilon=3, purpose="coding")
            >>> job.status.value
            'queued'
        """
        body = body_of(self._request(model, {"name": name, "purpose": purpose}, dict(fields)))
        response = self.transport.send("POST", "jobs", body=body, key=new_key())
        return Job(self.transport, self.transport.read(JobView, response), self.reader)

    def budget(self) -> BudgetView:
        """Return how much of its namespace's budget is spent, held and left.

        Examples:
            >>> data.budget().namespace
            'patients'
        """
        return self.transport.get(f"budgets/{self.view.namespace}", BudgetView)

    def _request(self, model: str, about: dict[str, Any], fields: dict[str, Any]) -> RemoteFit:
        if "select" in fields:
            raise SpecError("select belongs to the dataset: data.select(...)")
        if "privacy_unit" in fields:
            raise SpecError(
                f"the privacy unit is the dataset's own, {self.view.unit!r}; leave it out"
            )
        public = fields.get("public_data")
        if public is not None and not isinstance(public, str):
            raise SpecError(
                f"public_data of type {type(public).__name__} stays here: a gateway's job reads "
                "registered data and nothing else; give the name of a public data set there"
            )
        return request(RemoteFit, model=model, data=self.ref, **about, **fields)

    def _preview(self) -> PreviewView:
        if self.selected is not None:
            return self.selected
        return self.transport.get(f"datasets/{self.name}/preview", PreviewView)

    def _facts(self) -> dict[str, str]:
        view, part = self.view, self.ref.part
        rows = {
            "unit": f"{view.unit} ({view.units} units, declared)",
            "namespace": view.namespace,
            "state": view.state.value,
            "select": self.ref.select,
            "part": part and f"{part.side}, {part.test_share:g} of the units held out",
            "owner": view.owner,
            "description": view.description,
        }
        return {name: value for name, value in rows.items() if value}

    def __repr__(self) -> str:
        lines = [f"dataset {self.name}: {self.policy}"]
        lines += [f"{name}: {value}" for name, value in self._facts().items()]
        lines += [budget_line(budget) for budget in self._budgets()]
        if self.view.columns is None:
            return "\n".join([*lines, *to_confirm(self.view)])
        return "\n".join([*lines, repr(self.preview().head(_SHOWN_ROWS))])

    def _repr_html_(self) -> str:
        if self.view.columns is None:
            lines = [muted(line) for line in to_confirm(self.view)]
            return card(self.name, self.policy, facts(self._facts()), *lines)
        preview = self._preview()
        columns = [column.name for column in preview.columns]
        rows = [[row.get(name) for name in columns] for row in preview.rows[:_SHOWN_ROWS]]
        bars = [budget_bar(budget) for budget in self._budgets()]
        return card(self.name, self.policy, facts(self._facts()), *bars) + card(
            "preview", preview.policy.text, table(columns, rows)
        )

    def _budgets(self) -> list[BudgetView | GrantView]:
        budget = self.budget()
        return [budget, *budget.grants]


def to_confirm(view: DatasetView) -> list[str]:
    """Return what its owner must look at before a dataset is ready, in lines; empty for others."""
    candidates = view.found
    if candidates is None:
        return []
    names = [f"  {column.name!r}: {column.type}" for column in candidates.columns]
    source = "their schema" if candidates.named_by == "schema" else f"the {candidates.named_by}"
    lines = [f"columns, named by {source}; nobody else is shown them yet:", *names]
    lines += [f"  doubtful: {doubt}" for doubt in candidates.doubts]
    return lines
