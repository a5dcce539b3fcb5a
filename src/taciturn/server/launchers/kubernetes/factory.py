"""Factory of a launcher and its monitor, from the gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from taciturn.server.context import Gateway
from taciturn.server.launchers.kubernetes.client import Cluster
from taciturn.server.launchers.kubernetes.events import Append, StatusEvents
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.monitor import Monitor
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.server.launchers.kubernetes.sizing import Needs
from taciturn.server.schema.tables import jobs


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The cluster as a gateway uses it."""

    gateway: Gateway
    settings: KubernetesSettings
    cluster: Cluster

    @classmethod
    def open(cls, gateway: Gateway, kubeconfig: Path | None = None) -> Kubernetes:
        """Open as TACITURN_KUBERNETES_CONFIG says; without it, on CPUs of the namespace `default`.

        Raises:
            SpecError: the file or the cluster cannot be used.
        """
        path = gateway.settings.kubernetes_config
        settings = KubernetesSettings() if path is None else KubernetesSettings.read(path)
        return cls(gateway, settings, Cluster.connect(settings.namespace, kubeconfig))

    @property
    def keeps(self) -> bool:
        """True if anything of a worker is left when its node is gone."""
        return self.settings.keeps

    @property
    def needs(self) -> Needs:
        """Needs of jobs, by the settings' pools."""
        return Needs(self.gateway, self.settings)

    def launcher(self) -> KubernetesLauncher:
        """Launcher, for the dispatcher."""
        return KubernetesLauncher(self.cluster, self.settings, self.needs)

    def monitor(self, append: Append) -> Monitor:
        """Monitor, to be started and stopped with the gateway."""
        return Monitor(
            self.cluster,
            self.settings,
            StatusEvents(self.gateway, append),
            self.knows,
            self.gateway.clock,
        )

    def knows(self, job_id: str) -> bool:
        """True if the gateway has the job."""
        query = select(jobs.c.id).where(jobs.c.id == job_id)
        return self.gateway.read(lambda connection: connection.execute(query).first() is not None)
