"""The launcher: at most one Job for an attempt, whatever crashes between two calls.

A Job is made suspended under a name that follows from job and attempt; then what it needs is made
and owned by it; then it is let go. A launch that is repeated finds the Job, and does what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubernetes.client import models as k8s

from taciturn.server.launchers.kubernetes import manifests
from taciturn.server.launchers.kubernetes.cluster import Cluster, Kind, Object
from taciturn.server.launchers.kubernetes.names import Labels, Worker
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.server.launchers.kubernetes.sizing import Machine
from taciturn.server.launchers.port import LaunchError, Order, WorkerState


@dataclass(frozen=True, slots=True)
class Need:
    """What a job needs of the cluster.

    Attributes:
        data_secret: name of the Secret with its data's credentials; empty for none.
        checkpoint_secret: name of the Secret with the key of its checkpoints; empty for none.
    """

    machine: Machine
    data_secret: str = ""
    checkpoint_secret: str = ""


_SIGNING = "TACITURN_SIGNING_KEY"

NeedOf = Callable[[str], Need]
"""Of a job, by its id. Raises LaunchError: no machine is large enough."""


@dataclass(frozen=True, slots=True)
class KubernetesLauncher:
    """Workers as Jobs; see the port for what each method promises."""

    cluster: Cluster
    settings: KubernetesSettings
    need_of: NeedOf

    def launch(self, order: Order) -> str:
        """Start a worker, unless this attempt has one."""
        worker = Worker(order.job_id, order.attempt)
        found = self.cluster.get(Kind.JOBS, worker.name)
        if found is None:
            need = self.need_of(order.job_id)
            secrets = tuple(filter(None, (need.data_secret, need.checkpoint_secret)))
            made = manifests.job(worker, need.machine, self.settings, secrets)
            found = self.cluster.create(Kind.JOBS, made) or self.cluster.get(Kind.JOBS, worker.name)
        if found is None:
            raise LaunchError(f"{worker.name} was deleted while it was being started")
        if Worker.labelled(found) != worker:
            raise LaunchError(f"{worker.name} is there and is not ours; remove it")
        if not _let_go(found) and not _going(found):
            self._complete(worker, found, order)
        return order.handle

    def status(self, handle: str) -> WorkerState:
        """From the Job alone: the pod of the moment may be gone, and another one come."""
        found = self.cluster.get(Kind.JOBS, Worker.of(handle).name)
        if found is None:
            return WorkerState.ABSENT
        if not _let_go(found) and not _going(found):
            return WorkerState.ABSENT  # a launch was interrupted: it may be repeated
        return WorkerState.RUNNING if _lives(found) else WorkerState.ENDED

    def stop(self, handle: str, grace_s: float) -> None:
        """Delete the Job, its pods first; each has `grace_s` to end by itself."""
        worker = Worker.of(handle)
        found = self.cluster.get(Kind.JOBS, worker.name)
        if found is None:
            return
        self.cluster.delete(Kind.JOBS, worker.name, uid=found["metadata"]["uid"])
        pods, _ = self.cluster.list(Kind.PODS, labels=worker.selector(self.settings.instance))
        for pod in pods:
            metadata = pod["metadata"]
            # Never 0: that would forget a pod that may still run.
            grace = max(1, round(min(grace_s, self.settings.grace_period_s)))
            self.cluster.delete(Kind.PODS, metadata["name"], uid=metadata["uid"], grace_s=grace)

    def alive(self) -> tuple[str, ...]:
        """Handles of all Jobs of this gateway that are not over."""
        return tuple(worker.handle for worker, found in self._all() if _lives(found))

    def left(self) -> tuple[str, ...]:
        """Jobs that have something in the namespace."""
        return tuple(dict.fromkeys(worker.job_id for worker, _ in self._all()))

    def forget(self, job_id: str) -> None:
        """Delete a job's Jobs, unless one of them lives. Workspaces on a node go with the pods; a
        worker has removed its rows from one on a claim."""
        mine = [found for worker, found in self._all(job_id) if worker.job_id == job_id]
        if any(_lives(found) for found in mine):
            return
        for found in mine:
            metadata = found["metadata"]
            self.cluster.delete(Kind.JOBS, metadata["name"], uid=metadata["uid"])

    def waiting(self, handle: str) -> bool:
        """Whether the worker lives and none of its pods runs: a machine is on its way."""
        found = self.cluster.get(Kind.JOBS, Worker.of(handle).name)
        return found is not None and _lives(found) and not (found["status"].get("ready") or 0)

    def _complete(self, worker: Worker, job: Object, order: Order) -> None:
        """Make what the Job needs, and let it go."""
        uid = job["metadata"]["uid"]
        owner = manifests.owner_of(worker.name, uid)
        settings, annotations = self.settings, job["metadata"]["annotations"]
        nodes = int(annotations[manifests.NODES])
        told = dict(order.environment)
        if not told.get(_SIGNING, "").startswith(("env:", "command:")):
            told.pop(_SIGNING, None)  # a file of the gateway's machine; pods have signing_secret
        if settings.gateway_url:  # by which people reach it, workers may not
            told["TACITURN_GATEWAY_URL"] = settings.gateway_url
        secret = manifests.secret(worker, owner, told, settings.instance)
        self._give_secret(worker.name, secret)
        if nodes > 1:
            self.cluster.create(Kind.SERVICES, manifests.service(worker, owner, settings))
        if settings.network_policy:
            policy = manifests.network_policy(worker, owner, nodes, settings)
            self.cluster.create(Kind.POLICIES, policy)
        metadata = {"uid": uid, "annotations": {manifests.READY: "true"}}
        change: dict[str, Any] = {"metadata": metadata}
        if not settings.queue:  # Kueue lets it go when there is room
            change["spec"] = {"suspend": False}
        if self.cluster.patch(Kind.JOBS, worker.name, change) is None:
            raise LaunchError(f"{worker.name} was deleted while it was being started")

    def _give_secret(self, name: str, secret: k8s.V1Secret) -> None:
        if self.cluster.create(Kind.SECRETS, secret) is None:
            # Of a launch that did not finish: its token may be of yesterday.
            self.cluster.delete(Kind.SECRETS, name)
            if self.cluster.create(Kind.SECRETS, secret) is None:
                raise LaunchError(f"the Secret {name} is made by somebody else, too; try again")

    def _all(self, job_id: str | None = None) -> list[tuple[Worker, Object]]:
        instance = self.settings.instance
        chosen = Worker.job_selector(instance, job_id) if job_id else Labels.selector(instance)
        found, _ = self.cluster.list(Kind.JOBS, labels=chosen)
        labelled = ((Worker.labelled(each), each) for each in found)
        return [(worker, each) for worker, each in labelled if worker is not None]


def _let_go(job: Object) -> bool:
    return (job["metadata"].get("annotations") or {}).get(manifests.READY) == "true"


def _going(job: Object) -> bool:
    return "deletionTimestamp" in job["metadata"]


def _lives(job: Object) -> bool:
    """Whether a pod of the Job runs, or may come."""
    status = job.get("status") or {}
    if _going(job):
        return bool((status.get("active") or 0) + (status.get("terminating") or 0))
    return not any(
        each["type"] in ("Complete", "Failed") and each["status"] == "True"
        for each in status.get("conditions") or ()
    )
