"""Client: the way into a gateway, for practitioners and data owners."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self, Unpack

import httpx

from taciturn.sdk.admin import Administration
from taciturn.sdk.audit_log import Auditing, Row
from taciturn.sdk.credentials import find_credentials
from taciturn.sdk.dataset import Quote, RemoteDataset
from taciturn.sdk.job import Job, Result
from taciturn.sdk.listing import Listing
from taciturn.sdk.login import change_password
from taciturn.sdk.model import RemoteModel
from taciturn.sdk.notifications import NotificationRequests
from taciturn.sdk.requests import body_of, request
from taciturn.sdk.synthetic_preview import chosen_column, chosen_model
from taciturn.sdk.transport import Patience, Transport, new_key
from taciturn.spec import FitFields
from taciturn.wire.datasets import (
    BudgetTerms,
    BudgetView,
    DatasetView,
    DisclosureView,
    GrantTerms,
    GrantView,
    NewDataset,
    PolicyTerms,
    PolicyView,
)
from taciturn.wire.identity import Self as WhoAmI
from taciturn.wire.jobs import (
    ApprovalView,
    Decision,
    JobKind,
    JobState,
    JobView,
    ModelView,
    Withdrawal,
)
from taciturn.wire.models import BaseModelView
from taciturn.wire.public_datasets import NewPublicDataset, PublicDatasetView


def _read_result(transport: Transport, view: JobView) -> Result:
    """Read the result of a job; only then are pandas and the accountant imported."""
    from taciturn.sdk.results import read_result

    return read_result(transport, view)


class Client:
    """A gateway, as the holder of a token.

    Examples:
        >>> client = taciturn.Client("https://taciturn.example", token=...)
        >>> data = client.dataset("phee")
        >>> model = taciturn.LLM("meta-llama/Llama-2-7b-hf").fit(data, target_epsilon=3)

    Requests are repeated where that is safe, so that a lost answer never spends twice; what went
    wrong is a `taciturn.GatewayError`. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience: Patience | None = None,
        http: httpx.Client | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Find the gateway and the token; nothing is sent yet.

        Args:
            url: by default TACITURN_URL, then what `taciturn login` kept.
            token: by default TACITURN_TOKEN, then what `taciturn login` kept for this very url.
            patience: timeouts and repeats.
            http: connections of your own, for example through a proxy.

        Raises:
            AuthenticationError: no gateway or no token is named anywhere.
        """
        credentials = find_credentials(url, token, environment)
        self.transport = Transport(credentials.url, credentials.token, patience=patience, http=http)
        self.url = self.transport.url
        self.admin = Administration(self.transport)
        self.auditor = Auditing(self.transport)
        self.notifications = NotificationRequests(self.transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self.transport.close()

    def whoami(self) -> WhoAmI:
        """Return who the gateway takes this token's holder for."""
        return self.transport.get("self", WhoAmI)

    def change_password(self, current: str, new: str) -> None:
        """Another password for oneself; every other token and session of one's own ends."""
        change_password(self.transport, current, new)

    # For practitioners: datasets, jobs, models, budgets.

    def list_datasets(self) -> Listing[DatasetView]:
        """Datasets that the caller may know of; a list that notebooks show as a table."""
        return Listing(self.transport.pages("datasets", DatasetView))

    def dataset(self, name: str) -> RemoteDataset:
        """One of them: its terms, its preview, and what may be asked of it."""
        return self._dataset(self.transport.get(f"datasets/{name}", DatasetView))

    def plan(self, data: RemoteDataset, model: str, **fields: Unpack[FitFields]) -> Quote:
        """Return what a fit would be and cost; see RemoteDataset.plan."""
        return data.plan(model, **fields)

    def jobs(
        self, *, state: JobState | None = None, kind: JobKind | None = None
    ) -> Listing[JobView]:
        """Jobs that the caller may know of, newest first."""
        return Listing(self.transport.pages("jobs", JobView, {"state": state, "kind": kind}))

    def job(self, id: str) -> Job:
        """A handle on a job, wherever it was started."""
        return Job(self.transport, self.transport.get(f"jobs/{id}", JobView), _read_result)

    def models(self) -> Listing[ModelView]:
        """Fitted models that the caller may use, newest first."""
        return Listing(self.transport.pages("models", ModelView))

    def model(self, id: str) -> RemoteModel:
        """One of them."""
        view = self.transport.get(f"models/{id}", ModelView)
        return RemoteModel(self.transport, view, _read_result)

    def base_models(self) -> Listing[BaseModelView]:
        """Models that may be fitted."""
        return Listing(self.transport.pages("base-models", BaseModelView))

    def budget(self, namespace: str) -> BudgetView:
        """Return what of a namespace's budget and the caller's grants is spent, held and left."""
        return self.transport.get(f"budgets/{namespace}", BudgetView)

    def budgets(self) -> Listing[BudgetView]:
        """All budgets that the caller may know of."""
        return Listing(self.transport.pages("budgets", BudgetView))

    # For data owners: datasets, policies, grants, approvals.

    def add_dataset(
        self,
        name: str,
        source: str,
        *,
        unit: str,
        namespace: str,
        units: int,
        columns: Sequence[str] | None = None,
        header: bool = True,
        epsilon: float | None = None,
        delta: float | None = None,
        mock: Sequence[Mapping[str, Any]] = (),
        description: str | None = None,
    ) -> RemoteDataset:
        """Register a reference to rows; a job then looks whether they can be read.

        Names of columns may be data: a CSV's first line may be a row. So they are stated here, or
        confirmed by `RemoteDataset.confirm` once they were found; nobody else is shown them before.

        Args:
            source: path, glob or URL, or postgresql+psycopg://HOST/DB#TABLE; without credentials.
            unit: column or row-wise SQL that names the privacy unit.
            namespace: the people or things that the rows are about; its budget is theirs.
            units: how many units there are: declared, and public from then on.
            columns: names of all columns, in their order: public, too.
            header: False for text files (CSV, TSV) without a line of names; without `columns` they
                are then column_1, column_2, ...
            epsilon, delta: open the namespace's budget, where it has none yet.
            mock: invented rows for the preview.
        """
        terms = None
        if epsilon is not None or delta is not None:
            terms = request(BudgetTerms, epsilon=epsilon, delta=delta)
        new = request(
            NewDataset,
            name=name,
            source=source,
            unit=unit,
            namespace=namespace,
            units=units,
            columns=None if columns is None else tuple(columns),
            header=header,
            budget=terms,
            mock=tuple(dict(row) for row in mock),
            description=description,
        )
        response = self.transport.send("POST", "datasets", body=body_of(new), key=new_key())
        return self._dataset(self.transport.read(DatasetView, response))

    def remove_dataset(self, name: str) -> None:
        """Forget the reference; the rows, models and what was spent stay."""
        self.transport.send("DELETE", f"datasets/{name}")

    def public_datasets(self) -> Listing[PublicDatasetView]:
        """Public data sets: text without a unit or a budget, which a fit may name as its
        `public_data`. Everybody who is signed in sees them."""
        return Listing(self.transport.pages("public-datasets", PublicDatasetView))

    def public_dataset(self, name: str) -> PublicDatasetView:
        """One of them, with what was declared of it."""
        return self.transport.get(f"public-datasets/{name}", PublicDatasetView)

    def add_public_dataset(
        self,
        name: str,
        source: str,
        *,
        licence: str,
        origin: str,
        text_field: str | None = None,
        description: str | None = None,
    ) -> PublicDatasetView:
        """Declare text public, as an owner or an administrator: anybody may read all of it, and it
        would be there without any private row. Nothing can check that, and nothing of it changes.

        Args:
            source: path, glob or URL, or postgresql+psycopg://HOST/DB#TABLE; without credentials.
            licence: of the text, in one line.
            origin: where it comes from, and why anybody may read it; stands in certificates.
            text_field: its column of text; default: as in the private data, or the one it has.
        """
        new = request(
            NewPublicDataset,
            name=name,
            source=source,
            licence=licence,
            origin=origin,
            text_field=text_field,
            description=description,
        )
        response = self.transport.send("POST", "public-datasets", body=body_of(new), key=new_key())
        return self.transport.read(PublicDatasetView, response)

    def remove_public_dataset(self, name: str) -> None:
        """Let no new job use it; its name stays taken."""
        self.transport.send("DELETE", f"public-datasets/{name}")

    def synthesize_preview(
        self,
        name: str,
        *,
        epsilon: float,
        model: str | None = None,
        column: str | None = None,
        n: int = 50,
        progress: bool | None = None,
        **fields: Unpack[FitFields],
    ) -> RemoteDataset:
        """Replace the preview's invented rows by rows written with differential privacy.

        Fits `model` on one column, which is paid for once, and keeps `n` texts that it writes.

        Args:
            model: base model; default: the smallest one that the policy allows.
            column: the text column that the texts stand for; default: `text`, or the only one
                besides the unit's.
            fields: of the fit, besides its epsilon and text.
        """
        data = self.dataset(name)
        if column is None:
            column = chosen_column(data.view.columns, data.view.unit)
        if model is None:
            model = chosen_model(self.base_models(), self.policy(data.view.namespace).models)
        fields["text_field"], fields["target_epsilon"] = column, epsilon
        fitted = data.fit(model, name=f"preview of {name}", **fields)
        synthesis = fitted.fitted(progress=progress).start_synthesis(n).wait(progress=progress)
        body = {"job": synthesis.id, "column": column}
        self.transport.send("PUT", f"datasets/{name}/preview/synthetic", body=body)
        return self.dataset(name)

    def disclosures(self, name: str) -> Listing[DisclosureView]:
        """Everything about a dataset that has left, and to whom, newest first; for its owner."""
        return Listing(self.transport.pages(f"datasets/{name}/disclosures", DisclosureView))

    def policy(self, namespace: str) -> PolicyView:
        """The terms in force in a namespace."""
        return self.transport.get(f"policies/{namespace}", PolicyView)

    def set_policy(self, namespace: str, **terms: Any) -> PolicyView:
        """Change some terms of a namespace, the fields of PolicyTerms; the others stay.

        Raises:
            ConflictError: somebody else has changed them meanwhile; nothing was changed.
        """
        current = self.policy(namespace)
        unchanged = {name: getattr(current, name) for name in PolicyTerms.model_fields}
        new = request(PolicyTerms, **(unchanged | terms))
        response = self.transport.send(
            "PUT", f"policies/{namespace}", body=new, if_match=f'"{current.version}"'
        )
        return self.transport.read(PolicyView, response)

    def grant(
        self,
        namespace: str,
        holder: str,
        *,
        epsilon: float,
        delta: float,
        expires_at: datetime | None = None,
    ) -> GrantView:
        """Let `user:NAME` or `group:NAME` spend so much of a namespace's budget."""
        terms = request(GrantTerms, epsilon=epsilon, delta=delta, expires_at=expires_at)
        response = self.transport.send("PUT", f"policies/{namespace}/grants/{holder}", body=terms)
        return self.transport.read(GrantView, response)

    def grants(self, namespace: str) -> Listing[GrantView]:
        """List the grants of a namespace."""
        return Listing(self.transport.pages(f"policies/{namespace}/grants", GrantView))

    def revoke(self, namespace: str, holder: str) -> None:
        """End a grant; what was spent of it stays spent."""
        self.transport.send("DELETE", f"policies/{namespace}/grants/{holder}")

    def approvals(self, *, state: str | None = "open") -> Listing[ApprovalView]:
        """Requests for exceptions that the caller may know of."""
        return Listing(self.transport.pages("approvals", ApprovalView, {"state": state}))

    def approval(self, id: str) -> ApprovalView:
        """One of them: who asks for what and what for, who has said what, and what it would leave
        of the budget."""
        return self.transport.get(f"approvals/{id}", ApprovalView)

    def approve(self, id: str, comment: str | None = None) -> ApprovalView:
        """Say yes to an exception; another person has to, too."""
        return self._decide(id, "approve", comment)

    def reject(self, id: str, comment: str | None = None) -> ApprovalView:
        """Say no to an exception; one no is enough."""
        return self._decide(id, "reject", comment)

    def withdraw(self, id: str, comment: str | None = None) -> ApprovalView:
        """Take one's own yes back, until the job makes use of it."""
        body = body_of(request(Withdrawal, comment=comment))
        response = self.transport.send(
            "POST", f"approvals/{id}/withdrawals", body=body, key=new_key()
        )
        return self.transport.read(ApprovalView, response)

    def incident(self, id: str) -> str:
        """The full log of a failure, which may quote rows: for the data's owner alone."""
        return str(self.transport.get(f"incidents/{id}", Row).root["log"])

    def _dataset(self, view: DatasetView) -> RemoteDataset:
        return RemoteDataset.of(self.transport, view, _read_result)

    def _decide(
        self, id: str, decision: Literal["approve", "reject"], comment: str | None
    ) -> ApprovalView:
        body = body_of(request(Decision, decision=decision, comment=comment))
        response = self.transport.send(
            "POST", f"approvals/{id}/decisions", body=body, key=new_key()
        )
        return self.transport.read(ApprovalView, response)
