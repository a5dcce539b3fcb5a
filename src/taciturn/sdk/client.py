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

    Requests are repeated where that is safe, so that a lost answer never spends twice. Use it as a
    context manager, or `close` it.

    Raises:
        GatewayError: any request can raise it. Its subclasses say what went wrong: no valid token
            (`AuthenticationError`), not for this person (`PermissionDeniedError`), nothing there
            (`NotThereError`), a field outside its bound (`InvalidRequestError`), a contradiction to
            what is there (`ConflictError`), no answer (`UnavailableError`).

    Examples:
        >>> client = taciturn.Client("https://taciturn.example", token="tac_...")
        >>> data = client.dataset("phee")
        >>> model = taciturn.LLM("taciturn/tiny-medical").fit(data, target_epsilon=3)
        >>> print(model.policy)
        DP (epsilon=3, delta=1e-06, unit=patient_id)
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
            environment: where the two variables are looked up.

        Raises:
            AuthenticationError: no gateway or no token is named anywhere.

        Examples:
            >>> with taciturn.Client("https://taciturn.example", token="tac_...") as client:
            ...     name = client.whoami().name
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
        """Give the connections back.

        Examples:
            >>> client.close()
        """
        self.transport.close()

    def whoami(self) -> WhoAmI:
        """Return who the gateway takes this token's holder for.

        Examples:
            >>> client.whoami().name
            'ada'
        """
        return self.transport.get("self", WhoAmI)

    def change_password(self, current: str, new: str) -> None:
        """Set another password for oneself; every other token and session of one's own ends.

        Args:
            current: the password of today.
            new: the next one.

        Raises:
            PermissionDeniedError: the current password is another one.
            InvalidRequestError: the new one is too short.

        Examples:
            >>> client.change_password("a long sentence", "another long sentence")
        """
        change_password(self.transport, current, new)

    # For practitioners: datasets, jobs, models, budgets.

    def list_datasets(self) -> Listing[DatasetView]:
        """Datasets that the caller may know of; a list that notebooks show as a table.

        Examples:
            >>> [view.name for view in client.list_datasets()]
            ['phee', 'unconfirmed']
        """
        return Listing(self.transport.pages("datasets", DatasetView))

    def dataset(self, name: str) -> RemoteDataset:
        """One of them: its terms, its preview, and what may be asked of it.

        Args:
            name: as `list_datasets` shows it.

        Raises:
            NotThereError: there is no such dataset, or none that the caller may know of.

        Examples:
            >>> data = client.dataset("phee")
            >>> data.view.unit, data.view.units
            ('patient_id', 1100)
        """
        return self._dataset(self.transport.get(f"datasets/{name}", DatasetView))

    def plan(self, data: RemoteDataset, model: str, **fields: Unpack[FitFields]) -> Quote:
        """Return what a fit would be and cost; see RemoteDataset.plan.

        Args:
            data: a gateway's dataset.
            model: base model, by the name that the gateway knows it by.
            fields: the fields of `taciturn.spec.FitSpec`, as of `LLM.fit`.

        Examples:
            >>> quote = client.plan(data, "taciturn/tiny-medical", target_epsilon=3)
            >>> quote.verdict
            'there is room for it'
        """
        return data.plan(model, **fields)

    def jobs(
        self, *, state: JobState | None = None, kind: JobKind | None = None
    ) -> Listing[JobView]:
        """Jobs that the caller may know of, newest first.

        Args:
            state: only jobs in this state, such as "running".
            kind: only jobs of this kind, such as "fit".

        Examples:
            >>> [view.kind.value for view in client.jobs()]
            ['fit']
        """
        return Listing(self.transport.pages("jobs", JobView, {"state": state, "kind": kind}))

    def job(self, id: str) -> Job:
        """A handle on a job, wherever it was started.

        Args:
            id: as `Job.id` and `jobs` say it.

        Raises:
            NotThereError: there is no such job, or none that the caller may know of.

        Examples:
            >>> job = data.fit("taciturn/tiny-medical", target_epsilon=3)
            >>> client.job(job.id).wait().status.value
            'succeeded'
        """
        return Job(self.transport, self.transport.get(f"jobs/{id}", JobView), _read_result)

    def models(self) -> Listing[ModelView]:
        """Fitted models that the caller may use, newest first.

        Examples:
            >>> [view.base_model for view in client.models()]
            ['taciturn/tiny-medical']
        """
        return Listing(self.transport.pages("models", ModelView))

    def model(self, id: str) -> RemoteModel:
        """Return a fitted model.

        Args:
            id: as `models` says it.

        Raises:
            NotThereError: there is no such model, or none that the caller may know of.

        Examples:
            >>> remote = client.model("mod_00000000000000000001")
            >>> remote.policy
            'DP (epsilon=3, delta=1e-06, unit=patient_id)'
        """
        view = self.transport.get(f"models/{id}", ModelView)
        return RemoteModel(self.transport, view, _read_result)

    def base_models(self) -> Listing[BaseModelView]:
        """Models that may be fitted.

        Examples:
            >>> [view.name for view in client.base_models()]
            ['large/model', 'taciturn/tiny-medical']
        """
        return Listing(self.transport.pages("base-models", BaseModelView))

    def budget(self, namespace: str) -> BudgetView:
        """Return what of a namespace's budget and the caller's grants is spent, held and left.

        Args:
            namespace: the people or things that the rows are about.

        Returns:
            `epsilon` and `delta` of the budget; `charged` and `taken` as shares of it, from 0 to 1.

        Raises:
            NotThereError: there is no such namespace, or none that the caller may know of.

        Examples:
            >>> budget = client.budget("patients")
            >>> budget.epsilon, budget.charged
            (8.0, 0.25)
        """
        return self.transport.get(f"budgets/{namespace}", BudgetView)

    def budgets(self) -> Listing[BudgetView]:
        """All budgets that the caller may know of.

        Examples:
            >>> [budget.namespace for budget in client.budgets()]
            ['patients']
        """
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
            name: by which everybody asks for it.
            description: one line for those who may use it.

        Raises:
            PermissionDeniedError: the caller owns no data, or may not register this place.
            ConflictError: the name is taken, or the namespace is somebody else's.

        Examples:
            >>> data = client.add_dataset(
            ...     "notes",
            ...     "/srv/notes.csv",
            ...     unit="patient_id",
            ...     namespace="patients",
            ...     units=1100,
            ...     columns=("patient_id", "text"),
            ...     epsilon=8,
            ...     delta=1e-6,
            ... )
            >>> data.wait().name
            'notes'
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
        """Forget the reference; the rows, models and what was spent stay.

        Args:
            name: of the dataset.

        Raises:
            NotThereError: there is no such dataset, or none that the caller may know of.

        Examples:
            >>> client.remove_dataset("phee")
        """
        self.transport.send("DELETE", f"datasets/{name}")

    def public_datasets(self) -> Listing[PublicDatasetView]:
        """Public data sets: text without a unit or a budget, which a fit may name as its
        `public_data`. Everybody who is signed in sees them.

        Examples:
            >>> len(client.public_datasets())
            0
        """
        return Listing(self.transport.pages("public-datasets", PublicDatasetView))

    def public_dataset(self, name: str) -> PublicDatasetView:
        """One of them, with what was declared of it.

        Args:
            name: as `public_datasets` shows it.

        Raises:
            NotThereError: there is no such data set, or none that the caller may know of.

        Examples:
            >>> view = client.add_public_dataset(
            ...     "leaflets", "s3://public/leaflets.parquet", licence="CC0-1.0", origin="printed"
            ... )

            >>> client.public_dataset("leaflets").licence
            'CC0-1.0'
        """
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
            name: by which a fit names it as its `public_data`.
            description: one line for those who may use it.

        Raises:
            PermissionDeniedError: the caller is neither owner nor administrator.
            ConflictError: the name is taken.

        Examples:
            >>> view = client.add_public_dataset(
            ...     "leaflets", "s3://public/leaflets.parquet", licence="CC0-1.0", origin="printed"
            ... )

            >>> view.name
            'leaflets'
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
        """Let no new job use it; its name stays taken.

        Args:
            name: of the public data set.

        Raises:
            NotThereError: there is no such data set, or none that the caller may know of.

        Examples:
            >>> view = client.add_public_dataset(
            ...     "leaflets", "s3://public/leaflets.parquet", licence="CC0-1.0", origin="printed"
            ... )

            >>> client.remove_public_dataset("leaflets")
        """
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
            name: of the dataset.
            epsilon: what the fit may cost.
            n: texts to keep.
            progress: as of `Job.wait`.

        Raises:
            RemoteBudgetError: there is no room for the fit. Nothing was spent.
            JobFailedError: the fit or the writing failed.

        Examples:
            >>> data = client.synthesize_preview("phee", epsilon=1, n=20)
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
        """Everything about a dataset that has left, and to whom, newest first; for its owner.

        Args:
            name: of the dataset.

        Raises:
            NotThereError: there is no such dataset, or none that the caller may know of.

        Examples:
            >>> [(row.kind, row.to) for row in client.disclosures("phee")]
            [('model', 'user:paul')]
        """
        return Listing(self.transport.pages(f"datasets/{name}/disclosures", DisclosureView))

    def policy(self, namespace: str) -> PolicyView:
        """The terms in force in a namespace.

        Args:
            namespace: of the data.

        Raises:
            NotThereError: there is no such namespace, or none that the caller may know of.

        Examples:
            >>> client.policy("patients").owner
            'ada'
        """
        return self.transport.get(f"policies/{namespace}", PolicyView)

    def set_policy(self, namespace: str, **terms: Any) -> PolicyView:
        """Change some terms of a namespace, the fields of PolicyTerms; the others stay.

        Args:
            namespace: of the data.
            terms: the fields of `PolicyTerms` that are to change, such as `models` or
                `max_epsilon`.

        Raises:
            ConflictError: somebody else has changed them meanwhile; nothing was changed.

        Examples:
            >>> client.set_policy("patients", models=("taciturn/tiny-medical",)).version
            2
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
        """Let `user:NAME` or `group:NAME` spend so much of a namespace's budget.

        Args:
            namespace: of the data.
            holder: `user:NAME` or `group:NAME`.
            epsilon: the most that this holder may spend of the namespace's budget.
            delta: at which that is meant.
            expires_at: a time with its zone; by default the grant does not end.

        Raises:
            PermissionDeniedError: the namespace is somebody else's.
            InvalidRequestError: there is no such holder.

        Examples:
            >>> client.grant("patients", "user:paul", epsilon=3, delta=1e-6).holder
            'user:paul'
        """
        terms = request(GrantTerms, epsilon=epsilon, delta=delta, expires_at=expires_at)
        response = self.transport.send("PUT", f"policies/{namespace}/grants/{holder}", body=terms)
        return self.transport.read(GrantView, response)

    def grants(self, namespace: str) -> Listing[GrantView]:
        """List the grants of a namespace.

        Args:
            namespace: of the data.

        Examples:
            >>> len(client.grants("patients"))
            0
        """
        return Listing(self.transport.pages(f"policies/{namespace}/grants", GrantView))

    def revoke(self, namespace: str, holder: str) -> None:
        """End a grant; what was spent of it stays spent.

        Args:
            namespace: of the data.
            holder: `user:NAME` or `group:NAME`.

        Raises:
            NotThereError: there is no such grant, or none that the caller may know of.

        Examples:
            >>> grant = client.grant("patients", "user:paul", epsilon=3, delta=1e-6)
            >>> client.revoke("patients", "user:paul")
        """
        self.transport.send("DELETE", f"policies/{namespace}/grants/{holder}")

    def approvals(self, *, state: str | None = "open") -> Listing[ApprovalView]:
        """Requests for exceptions that the caller may know of.

        Args:
            state: "open" for those that wait for a decision; None for all.

        Examples:
            >>> [(request.requester, request.reason) for request in client.approvals()]
            [('eve', 'no_guarantee')]
        """
        return Listing(self.transport.pages("approvals", ApprovalView, {"state": state}))

    def approval(self, id: str) -> ApprovalView:
        """One of them: who asks for what and what for, who has said what, and what it would leave
        of the budget.

        Args:
            id: as `approvals` says it.

        Raises:
            NotThereError: there is no such request, or none that the caller may know of.

        Examples:
            >>> client.approval("apr_00000000000000000001").purpose
            'a poster for the retreat'
        """
        return self.transport.get(f"approvals/{id}", ApprovalView)

    def approve(self, id: str, comment: str | None = None) -> ApprovalView:
        """Say yes to an exception; another person has to, too.

        Args:
            id: as `approvals` says it.
            comment: one line that the requester and the other approver see.

        Raises:
            PermissionDeniedError: the caller is no approver of it, or has asked for it.
            ConflictError: it is decided already.

        Examples:
            >>> request = client.approve("apr_00000000000000000001", "as discussed")
        """
        return self._decide(id, "approve", comment)

    def reject(self, id: str, comment: str | None = None) -> ApprovalView:
        """Say no to an exception; one no is enough.

        Args:
            id: as `approvals` says it.
            comment: one line that the requester and the other approver see.

        Raises:
            PermissionDeniedError: the caller is no approver of it, or has asked for it.
            ConflictError: it is decided already.

        Examples:
            >>> request = client.reject("apr_00000000000000000001", "not for a poster")
        """
        return self._decide(id, "reject", comment)

    def withdraw(self, id: str, comment: str | None = None) -> ApprovalView:
        """Take one's own yes back, until the job makes use of it.

        Args:
            id: as `approvals` says it.
            comment: one line that the requester and the other approver see.

        Raises:
            PermissionDeniedError: the caller is no approver of it, or has asked for it.
            ConflictError: it is decided already.

        Examples:
            >>> request = client.withdraw("apr_00000000000000000001", "as discussed")
        """
        body = body_of(request(Withdrawal, comment=comment))
        response = self.transport.send(
            "POST", f"approvals/{id}/withdrawals", body=body, key=new_key()
        )
        return self.transport.read(ApprovalView, response)

    def incident(self, id: str) -> str:
        """The full log of a failure, which may quote rows: for the data's owner alone.

        Args:
            id: as a failed job says it.

        Raises:
            NotThereError: there is no such incident, or none that the caller may know of.

        Examples:
            >>> client.incident("inc_1").partition(":")[0]
            'Traceback'
        """
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
