"""The launcher: at most one Job for an attempt, whatever crashes between two calls.

A Job is made suspended under a name that follows from job and attempt; then what it needs is made
and owned by it; then it is let go. A launch that is repeated finds the Job, and does what is left.

No container starts without its policy: it needs the Secret, which the policy owns and which is made
after it, and whoever deletes one of them without saying otherwise has the garbage collector remove
the Secret before the policy. What is there of an earlier Job of that name has another owner, and
does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kubernetes.client import models as k8s
from pydantic import BaseModel

from taciturn.server.launchers.base import LaterError, LaunchError, Order, WorkerState
from taciturn.server.launchers.kubernetes import manifests
from taciturn.server.launchers.kubernetes.client import Cluster, Kind, Object
from taciturn.server.launchers.kubernetes.names import Labels, Worker
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.server.launchers.kubernetes.sizing import Need

_SIGNING = "TACITURN_SIGNING_KEY"
_TERMINAL = ("Succeeded", "Failed")

NeedOf = Callable[[str], Need]
"""Of a job, by its id. Raises LaunchError: no machine is large enough."""


@dataclass(frozen=True, slots=True)
class KubernetesLauncher:
    """Workers as Jobs; see the port for what each method promises."""

    cluster: Cluster
    settings: KubernetesSettings
    need_of: NeedOf
    _signs: list[str] = field(default_factory=list, init=False, repr=False)

    def launch(self, order: Order) -> str:
        """Start a worker, unless this attempt has one."""
        worker = Worker(order.job_id, order.attempt)
        job = self.cluster.get(Kind.JOBS, worker.name)
        if _is_to_do(job) and self._pods(worker.selector(self.settings.instance)):
            raise LaterError(f"pods of an earlier {worker.name} still run")
        if job is None:
            self._give_signing_key()
            need = self.need_of(order.job_id)
            secrets = tuple(filter(None, (need.data_secret, need.checkpoint_secret)))
            manifest = manifests.job(worker, need.machine, self.settings, secrets)
            job = self.cluster.create(Kind.JOBS, manifest) or self.cluster.get(
                Kind.JOBS, worker.name
            )
        if job is None:
            raise LaterError(f"{worker.name} was deleted while it was being started")
        if Worker.labelled(job) != worker:
            raise LaunchError(
                f"{worker.name} exists and belongs to no worker of this gateway; remove it"
            )
        if _is_to_do(job):
            self._complete(worker, job, order)
        return order.handle

    def status(self, handle: str) -> WorkerState:
        """State of a worker: from the Job, whose current pod may be gone, and another one come;
        where there is none, or it goes, from its pods: they may live longer."""
        worker = Worker.of(handle)
        job = self.cluster.get(Kind.JOBS, worker.name)
        if _is_to_do(job) or job is None or _going(job):
            if self._pods(worker.selector(self.settings.instance)):
                return WorkerState.RUNNING
            # A launch that was interrupted may be repeated.
            return WorkerState.ABSENT if _is_to_do(job) else WorkerState.ENDED
        if _lives(job):
            return WorkerState.RUNNING
        return WorkerState.GIVEN_UP if manifests.given_up(job) else WorkerState.ENDED

    def stop(self, handle: str, grace_s: float) -> None:
        """Delete the Job, its pods first; each has `grace_s` to end by itself."""
        worker = Worker.of(handle)
        job = self.cluster.get(Kind.JOBS, worker.name)
        if job is not None:
            self.cluster.delete(Kind.JOBS, worker.name, uid=job["metadata"]["uid"])
        for pod in self._pods(worker.selector(self.settings.instance)):
            metadata = pod["metadata"]
            # Never 0: that would forget a pod that may still run.
            grace = max(1, round(min(grace_s, self.settings.grace_period_s)))
            self.cluster.delete(Kind.PODS, metadata["name"], uid=metadata["uid"], grace_s=grace)

    def alive(self) -> tuple[str, ...]:
        """Handles of all Jobs of this gateway that are not over, and of pods without one."""
        jobs = [worker.handle for worker, job in self._all(Kind.JOBS) if _lives(job)]
        owners = map(Worker.labelled, self._pods(Labels.selector(self.settings.instance)))
        return tuple(
            dict.fromkeys([*jobs, *(owner.handle for owner in owners if owner is not None)])
        )

    def leftover_jobs(self) -> tuple[str, ...]:
        """Jobs that have something in the namespace."""
        objects = [*self._all(Kind.JOBS), *self._all(Kind.POLICIES)]
        return tuple(dict.fromkeys(worker.job_id for worker, _ in objects))

    def forget(self, job_id: str) -> None:
        """Delete a job's Jobs, unless one of them lives, and what a deletion has orphaned.

        Workspaces on a node go with the pods; a worker has removed its rows from one on a claim.
        """
        own_jobs = self._all(Kind.JOBS, job_id)
        if any(_lives(job) for _, job in own_jobs):
            return
        if self._pods(Worker.job_selector(self.settings.instance, job_id)):
            return
        # The Secret, which cannot be listed, goes with the policy that owns it.
        orphans = [
            (kind, item)
            for kind in (Kind.SERVICES, Kind.POLICIES)
            for _, item in self._all(kind, job_id)
            if not item["metadata"].get("ownerReferences")
        ]
        for kind, item in [*((Kind.JOBS, job) for _, job in own_jobs), *orphans]:
            metadata = item["metadata"]
            self.cluster.delete(kind, metadata["name"], uid=metadata["uid"])

    def waiting(self, handle: str) -> bool:
        """True if the worker lives and none of its pods runs: a machine is on its way."""
        job = self.cluster.get(Kind.JOBS, Worker.of(handle).name)
        return job is not None and _lives(job) and not (job["status"].get("ready") or 0)

    def _complete(self, worker: Worker, job: Object, order: Order) -> None:
        """Make what the Job needs, and let it go."""
        uid = job["metadata"]["uid"]
        owner = manifests.owner_of(worker.name, uid)
        settings, annotations = self.settings, job["metadata"]["annotations"]
        nodes = int(annotations[manifests.NODES])
        environment = dict(order.environment)
        if not environment.get(_SIGNING, "").startswith(("env:", "command:")):
            environment.pop(
                _SIGNING, None
            )  # a file of the gateway's machine; pods have signing_secret
        if settings.gateway_url:  # by which people reach it, workers may not
            environment["TACITURN_GATEWAY_URL"] = settings.gateway_url
        if nodes > 1:
            self._own(Kind.SERVICES, manifests.service(worker, owner, settings), worker, uid)
        if settings.network_policy:
            manifest = manifests.network_policy(worker, owner, nodes, settings)
            policy = self._own(Kind.POLICIES, manifest, worker, uid)
            owner = manifests.policy_as_owner(worker.name, policy["metadata"]["uid"])
        self._give_secret(worker, manifests.secret(worker, owner, environment, settings.instance))
        metadata = {"uid": uid, "annotations": {manifests.READY: "true"}}
        change: dict[str, Any] = {"metadata": metadata}
        if not settings.queue:  # Kueue lets it go when there is room
            change["spec"] = {"suspend": False}
        if self.cluster.patch(Kind.JOBS, worker.name, change) is None:
            raise LaterError(f"{worker.name} was deleted while it was being started")

    def _own(self, kind: Kind, manifest: BaseModel, worker: Worker, uid: str) -> Object:
        """An object of the Job with this uid. One that an earlier Job of that name has left is
        removed: the garbage collector would do so later, when a worker relies on it."""
        for _ in range(2):
            created = self.cluster.create(kind, manifest)
            if created is not None:
                return created
            objects, _ = self.cluster.list(kind, fields=f"metadata.name={worker.name}")
            for item in objects:
                if Worker.labelled(item) != worker:
                    raise LaunchError(
                        f"{kind}/{worker.name} exists and belongs to no worker of this gateway; "
                        "remove it"
                    )
                if _is_owned(item, uid):
                    return item
                self.cluster.delete(kind, worker.name, uid=item["metadata"]["uid"])
        raise LaterError(f"{kind}/{worker.name} of an earlier worker is still there")

    def _give_signing_key(self) -> None:
        """Make the gateway's own signing key, unless it is there; it cannot be looked at."""
        settings = self.settings
        if settings.signing and not settings.signing_secret and not self._signs:
            self.cluster.create(Kind.SECRETS, manifests.signing_key(settings.signing))
            self._signs.append(settings.signing)

    def _give_secret(self, worker: Worker, secret: k8s.V1Secret) -> None:
        if self.cluster.create(Kind.SECRETS, secret) is None:
            # Of a launch that did not finish: its token may be of yesterday.
            self.cluster.delete(Kind.SECRETS, worker.name)
            if self.cluster.create(Kind.SECRETS, secret) is None:
                raise LaterError(f"the Secret {worker.name} is made by somebody else, too")

    def _pods(self, selector: str) -> list[Object]:
        """Pods that may still run."""
        pods, _ = self.cluster.list(Kind.PODS, labels=selector)
        return [pod for pod in pods if pod["status"].get("phase") not in _TERMINAL]

    def _all(self, kind: Kind, job_id: str | None = None) -> list[tuple[Worker, Object]]:
        instance = self.settings.instance
        selector = Worker.job_selector(instance, job_id) if job_id else Labels.selector(instance)
        objects, _ = self.cluster.list(kind, labels=selector)
        labelled = ((Worker.labelled(item), item) for item in objects)
        return [(worker, item) for worker, item in labelled if worker is not None]


def _is_to_do(job: Object | None) -> bool:
    """True if a launch has to be begun or finished."""
    if job is None:
        return True
    annotations = job["metadata"].get("annotations") or {}
    return annotations.get(manifests.READY) != "true" and not _going(job)


def _going(item: Object) -> bool:
    return "deletionTimestamp" in item["metadata"]


def _is_owned(item: Object, uid: str) -> bool:
    """True if it belongs to the Job with this uid, and stays as long as that does."""
    owners = item["metadata"].get("ownerReferences") or ()
    return not _going(item) and any(owner["uid"] == uid for owner in owners)


def _lives(job: Object) -> bool:
    """True if a pod of the Job runs, or may come."""
    status = job.get("status") or {}
    if _going(job):
        return bool((status.get("active") or 0) + (status.get("terminating") or 0))
    return not any(
        condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
        for condition in status.get("conditions") or ()
    )
