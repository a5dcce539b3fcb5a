"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.datasets import Datasets
from taciturn.server.gateway import Gateway
from taciturn.server.grants import Grants
from taciturn.server.identity.directory import Directory
from taciturn.server.policies import Policies
from taciturn.server.trials import Trials


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    directory: Directory
    trials: Trials
    policies: Policies
    grants: Grants
    datasets: Datasets

    @classmethod
    def of(cls, gateway: Gateway) -> Services:
        """All services on one gateway."""
        trials, policies = Trials(), Policies(gateway)
        grants = Grants(gateway, policies)
        return cls(
            gateway=gateway,
            directory=Directory(gateway),
            trials=trials,
            policies=policies,
            grants=grants,
            datasets=Datasets(gateway, policies, grants, trials),
        )
