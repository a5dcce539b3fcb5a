"""The launcher that a gateway's settings name, and what has to run beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from taciturn.errors import MissingDependencyError
from taciturn.server.background import Component
from taciturn.server.context import Gateway
from taciturn.server.launchers.base import Launcher, Sizing, own_machine
from taciturn.server.launchers.local import LocalLauncher
from taciturn.wire.events import JobEvent

Append = Callable[[Connection, str, JobEvent], None]


@dataclass(frozen=True, slots=True)
class Launching:
    """A launcher and what comes with it.

    Attributes:
        monitor: makes what tells jobs what becomes of their machines, where there are any.
        keeps: what a fit's worker leaves is there for the workers of later jobs.
        machine: says which machine a fit would get.
    """

    launcher: Launcher
    monitor: Callable[[], Component] | None = None
    keeps: bool = True
    machine: Sizing = own_machine

    @classmethod
    def open(cls, gateway: Gateway, append: Append) -> Launching:
        """Open the launcher that the settings name.

        Raises:
            SpecError: the cluster or its settings cannot be used.
            MissingDependencyError: its client is not installed.
        """
        settings = gateway.settings
        if settings.launcher == "local":
            return cls(LocalLauncher(settings.data_dir / "workspaces", settings.worker_env))
        try:
            from taciturn.server.launchers.kubernetes.factory import Kubernetes
        except ImportError as error:
            raise MissingDependencyError(
                f"{error.name} is not installed: pip install 'taciturn[kubernetes]'"
            ) from None
        cluster = Kubernetes.open(gateway)
        return cls(
            cluster.launcher(),
            lambda: cluster.monitor(append),
            keeps=cluster.keeps,
            machine=cluster.needs.planned,
        )
