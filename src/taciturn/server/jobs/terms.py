"""Terms that a job is requested under: dataset, policy, grant, models, as they stand.

All of it is public to the asker; rows have no part in it. What the asker may not know of is not
found, and what the policy does not allow is refused here, before anything is priced or held.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import Connection, Row, select

from taciturn.data.sql.check import check_list
from taciturn.planning.plan import max_tokens
from taciturn.server.catalog.datasets import WHY_NOT_READY
from taciturn.server.catalog.public_datasets import check_is_private, usable_public_dataset
from taciturn.server.identity.job_access import no_model, uses_model
from taciturn.server.identity.namespace_access import live_holders, no_dataset, owns
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import base_models, datasets, models, policies
from taciturn.server.timestamps import milliseconds
from taciturn.spec import EvaluateSpec, FitSpec
from taciturn.wire.datasets import ColumnView, DatasetState, PolicyTerms
from taciturn.wire.jobs import (
    DataRef,
    JobKind,
    RemoteAudit,
    RemoteEvaluate,
    RemoteFit,
    RemoteSample,
    RemoteSynthesize,
)
from taciturn.wire.public_datasets import PublicDatasetView
from taciturn.wire.values import PolicyLine
from taciturn.wire.worker import BaseModelFacts

SubmittedRequest = RemoteFit | RemoteSample | RemoteEvaluate | RemoteAudit | RemoteSynthesize


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Public facts about a dataset."""

    name: str
    unit: str
    units: int
    columns: tuple[ColumnView, ...]


@dataclass(frozen=True, slots=True)
class FittedFacts:
    """A fitted model: which, and what it promises."""

    id: str
    policy: PolicyLine


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms that a job is requested under; equal if none of them has changed.

    Attributes:
        policy_version: of the namespace's policy.
        holders: whose grants there are to draw on, in the order in which they are tried; empty for
            the namespace's owner, who spends the joint budget.
        owned: the asker owns the namespace.
        public_data: text that a fit learns from first, outside of its guarantee.
    """

    namespace: str
    policy: PolicyTerms
    policy_version: int
    holders: tuple[str, ...]
    owned: bool
    dataset: DatasetFacts | None = None
    base: BaseModelFacts | None = None
    fitted: FittedFacts | None = None
    public_data: PublicDatasetView | None = None


def terms_of(
    connection: Connection, caller: Principal, request: SubmittedRequest, now_ms: int
) -> Terms:
    """The terms for this request of this person.

    Raises:
        ProblemError: `not_found`, `not_ready`, `policy_refused`, `invalid`.
    """
    data = request.data if isinstance(request, RemoteFit | RemoteEvaluate) else None
    row = fitted = None
    if not isinstance(request, RemoteFit):
        fitted, policy = _fitted(connection, caller, request.model)
    if data is not None:
        row, policy, holders = usable_dataset(connection, caller, data.dataset, now_ms)
    else:
        holders = _holders(connection, caller, policy, now_ms)
    if fitted is not None:
        _check_lengths(connection, request, fitted.base_model)
    namespace = policy.namespace
    terms = PolicyTerms.model_validate_json(policy.terms)
    _check_settled(policy)
    _check_policy(terms, request, now_ms)
    base = _base(connection, request.model) if isinstance(request, RemoteFit) else None
    return Terms(
        namespace=namespace,
        policy=terms,
        policy_version=policy.version,
        holders=holders,
        owned=owns(caller, policy.owner_id),
        dataset=None if row is None or data is None else dataset_facts(row, data),
        base=base,
        fitted=None if fitted is None else _facts(fitted),
        public_data=_public_data(connection, caller, request, now_ms),
    )


def _public_data(
    connection: Connection, caller: Principal, request: SubmittedRequest, now_ms: int
) -> PublicDatasetView | None:
    if not isinstance(request, RemoteFit) or request.public_data is None:
        return None
    return usable_public_dataset(connection, caller, request.public_data, now_ms)


def _holders(
    connection: Connection, caller: Principal, policy: Row[Any], now_ms: int
) -> tuple[str, ...]:
    if owns(caller, policy.owner_id):
        return ()
    return live_holders(connection, caller, policy.namespace, now_ms)


def usable_dataset(
    connection: Connection, caller: Principal, name: str, now_ms: int
) -> tuple[Row[Any], Row[Any], tuple[str, ...]]:
    """A dataset that the caller may use, its policy, and the holders to draw on."""
    query = select(datasets).where(datasets.c.name == name, datasets.c.removed_at_ms.is_(None))
    row = connection.execute(query).first()
    if row is not None:
        policy = _policy(connection, row.namespace)
        holders = _holders(connection, caller, policy, now_ms)
        if holders or owns(caller, policy.owner_id):
            return row, policy, holders
    check_is_private(connection, name)
    raise no_dataset(name)


def _fitted(connection: Connection, caller: Principal, model_id: str) -> tuple[Row[Any], Row[Any]]:
    """A model that the caller may use, and its policy."""
    query = select(models).where(models.c.id == model_id, uses_model(caller))
    row = connection.execute(query).first()
    if row is None:
        raise no_model(model_id)
    return row, _policy(connection, row.namespace)


def _check_lengths(connection: Connection, request: SubmittedRequest, base_model: str) -> None:
    """Check that a request has room in a fitted model's context, if that is still known.

    Raises ProblemError `invalid`, SpecError.
    """
    query = select(base_models.c.context_length).where(base_models.c.name == base_model)
    context = connection.scalar(query)
    if context is None:
        return
    if isinstance(request, RemoteEvaluate):
        max_tokens(request, context)
    if isinstance(request, RemoteSample | RemoteSynthesize):
        most = context - 2  # one token of a prompt, and the one that opens a text
        if request.max_new_tokens > most:
            raise ProblemError(
                "invalid",
                f"max_new_tokens={request.max_new_tokens} leaves no room for a prompt in the "
                f"model's context of {context} tokens; ask for at most {most}",
            )


def _facts(row: Row[Any]) -> FittedFacts:
    return FittedFacts(row.id, PolicyLine.model_validate_json(row.policy))


def _base(connection: Connection, name: str) -> BaseModelFacts:
    row = connection.execute(select(base_models).where(base_models.c.name == name)).first()
    if row is None:
        raise ProblemError(
            "invalid",
            f"model: {name!r} is not registered here, so its fit cannot be priced; GET "
            "/v1/base-models lists what is, an administrator adds others",
        )
    return BaseModelFacts.model_validate(row, from_attributes=True)


def _policy(connection: Connection, namespace: str) -> Row[Any]:
    row = connection.execute(select(policies).where(policies.c.namespace == namespace)).first()
    assert row is not None, "a foreign key keeps the policy of every dataset and model"
    return row


def _check_settled(policy: Row[Any]) -> None:
    """The ledger may still hold an earlier cap: nothing is judged by terms that do not hold yet."""
    if policy.version != policy.settled_version:
        raise ProblemError(
            "not_ready",
            f"the terms of {policy.namespace!r} are being changed; try again in a moment",
        )


def _check_policy(terms: PolicyTerms, request: SubmittedRequest, now_ms: int) -> None:
    if terms.expires_at is not None and milliseconds(terms.expires_at) <= now_ms:
        raise ProblemError(
            "policy_refused",
            f"the policy of this data expired at {terms.expires_at.isoformat()}; its owner can "
            "renew it",
        )
    if request.kind not in terms.kinds:
        allowed_kinds = ", ".join(sorted(terms.kinds)) or "none"
        raise ProblemError(
            "policy_refused",
            f"kind={request.kind.value!r}: the policy of this data allows jobs of the kinds "
            f"{allowed_kinds}; ask its owner",
        )
    if isinstance(request, RemoteFit):
        _check_model(terms, request.model)
    if isinstance(request, RemoteFit | RemoteEvaluate):
        _check_epsilon(terms, request)


def _check_model(terms: PolicyTerms, model: str) -> None:
    if not any(fnmatchcase(model, pattern) for pattern in terms.models):
        allowed_models = ", ".join(terms.models) or "none"
        raise ProblemError(
            "policy_refused",
            f"model={model!r}: the policy of this data allows {allowed_models}; ask its owner",
        )


def _check_epsilon(terms: PolicyTerms, request: FitSpec | EvaluateSpec) -> None:
    most, epsilon = terms.job_epsilon, request.target_epsilon
    if most is not None and isinstance(epsilon, float) and epsilon > most:
        raise ProblemError(
            "policy_refused",
            f"target_epsilon={epsilon:g} is above {most:g}, the most that one job may cost by the "
            "policy of this data; lower it",
        )
    if request.delta is not None and request.delta > terms.budget.delta:
        # An epsilon at a larger delta is a smaller number for the same loss of privacy.
        raise ProblemError(
            "policy_refused",
            f"delta={request.delta:g} is above {terms.budget.delta:g}, that of the namespace's "
            "budget; lower it, or leave it out",
        )


def dataset_facts(row: Row[Any], data: DataRef) -> DatasetFacts:
    """Public facts of a dataset that is ready; raises ProblemError `not_ready`, `invalid`."""
    if row.state != DatasetState.READY:
        raise ProblemError(
            "not_ready",
            f"dataset {row.name!r} is {row.state}: {WHY_NOT_READY[DatasetState(row.state)]}; only "
            "a ready one can be used",
        )
    columns = tuple(ColumnView(**column) for column in json.loads(row.columns))
    if data.select is not None:
        check_list(data.select, [column.name for column in columns])
    return DatasetFacts(row.name, row.unit, row.units, columns)


def is_paid_for(request: SubmittedRequest) -> bool:
    """True if a request is about private rows, so that a repeated one could cost twice."""
    return request.kind is JobKind.FIT or (
        isinstance(request, RemoteEvaluate) and bool(request.data)
    )
