"""Removes what belongs to no job that the gateway knows: of an installation that was restored from
a backup, of a crash between two calls, of a hand that deleted a Job without what it owned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from taciturn.server.launchers.kubernetes.client import Cluster, Kind, parse_time
from taciturn.server.launchers.kubernetes.names import Labels, Worker

_KINDS = (Kind.JOBS, Kind.SERVICES, Kind.POLICIES, Kind.CONFIG_MAPS)
_YOUNG_S = 300.0


@dataclass(frozen=True, slots=True)
class GarbageCollector:
    """Garbage collector of one gateway's objects.

    Attributes:
        knows_job: tells whether the gateway has a job of this id.
        young_s: how old an object must be: another gateway of the same database may have made the
            job that this one does not see yet.
    """

    cluster: Cluster
    instance: str
    knows_job: Callable[[str], bool]
    young_s: float = _YOUNG_S

    def reap(self, now: datetime) -> list[str]:
        """Delete orphans; returns `kind/name` of each. A Secret cannot be listed, since the owners'
        Secrets are in the same namespace: it goes with its Job, or by its name."""
        reaped = []
        for kind in _KINDS:
            objects, _ = self.cluster.list(kind, labels=Labels.selector(self.instance))
            for item in objects:
                metadata, worker = item["metadata"], Worker.labelled(item)
                age_s = (now - parse_time(metadata["creationTimestamp"])).total_seconds()
                if worker is None or age_s < self.young_s or self.knows_job(worker.job_id):
                    continue
                self.cluster.delete(kind, metadata["name"], uid=metadata["uid"])
                if kind is Kind.JOBS:
                    self.cluster.delete(Kind.SECRETS, metadata["name"])
                reaped.append(f"{kind}/{metadata['name']}")
        return reaped
