"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from taciturn.server.budgets import Budgets, LedgerView
from taciturn.server.datasets import Datasets
from taciturn.server.gateway import Gateway
from taciturn.server.grants import Grants
from taciturn.server.identity.directory import Directory
from taciturn.server.policies import Policies
from taciturn.server.previews import Files, Previews
from taciturn.server.registrations import Desk, Registrations
from taciturn.server.trials import Trials


class _NoDesk:
    """Nobody looks at datasets: they stay as they are registered."""

    def probe(self, connection: Connection, dataset: str, namespace: str, owner_id: str) -> str:
        return ""


class _NoFiles:
    """Nothing was released."""

    def get(self, key: str) -> Iterator[bytes]:
        raise KeyError(key)


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    directory: Directory
    trials: Trials
    policies: Policies
    grants: Grants
    datasets: Datasets
    registrations: Registrations
    previews: Previews
    budgets: Budgets
    ledger_view: LedgerView

    @classmethod
    def of(
        cls,
        gateway: Gateway,
        *,
        desk: Desk | None = None,
        files: Files | None = None,
        trials: Trials | None = None,
    ) -> Services:
        """All services on one gateway."""
        trials, policies = trials or Trials(), Policies(gateway)
        grants = Grants(gateway, policies)
        datasets = Datasets(gateway, policies, grants, trials)
        return cls(
            gateway=gateway,
            directory=Directory(gateway),
            trials=trials,
            policies=policies,
            grants=grants,
            datasets=datasets,
            registrations=Registrations(gateway, policies, datasets, trials, desk or _NoDesk()),
            previews=Previews(gateway, datasets, trials, files or _NoFiles()),
            budgets=Budgets(gateway, policies, grants),
            ledger_view=LedgerView(gateway, policies),
        )
