"""Runs beside the gateway: follows the cluster, tells what happens to each worker, sees nodes off.

It knows nothing that the cluster does not know, so it may be ended and started at any moment; what
it then tells again, it has told before.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from taciturn.server.launchers.kubernetes.client import (
    Cluster,
    ClusterError,
    Kind,
    Object,
    parse_time,
)
from taciturn.server.launchers.kubernetes.garbage import GarbageCollector
from taciturn.server.launchers.kubernetes.informer import (
    Caught,
    Change,
    Forbidden,
    Informer,
    ObjectChange,
)
from taciturn.server.launchers.kubernetes.machines import Machines, Use
from taciturn.server.launchers.kubernetes.manifests import (
    GIVEN_UP,
    NODES,
    POOL,
    READY,
    given_up,
)
from taciturn.server.launchers.kubernetes.names import Labels, Worker
from taciturn.server.launchers.kubernetes.release import MachineRelease
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.status import (
    WorkerFacts,
    WorkerStatus,
    events_of,
    status_of,
    waiting_message,
)
from taciturn.wire.events import NodeEvent

log = logging.getLogger("taciturn.server.launchers.kubernetes")

_TERMINAL = ("Succeeded", "Failed")
_TICK_S = 1.0
_GONE = "gone"  # the uid of a node that was never seen: no node has it
_REAP_S = 60.0
_STUCK_S = 120.0  # a launch that is repeated makes the Secret anew in between
_KINDS = (Kind.JOBS, Kind.PODS, Kind.EVENTS, Kind.NODES)

Report = Callable[[str, NodeEvent], None]
"""Told: a worker's handle and its news. May be told the same twice, after a restart."""


def utc_now() -> datetime:
    """Now."""
    return datetime.now(UTC)


@dataclass
class Monitor:
    """Monitor of one gateway's workers.

    Attributes:
        report: takes each new status of a worker.
        knows_job: tells whether the gateway has a job of this id.
        clock: the time; tests run it faster.
        ready: set when everything that is there has been seen once.
    """

    cluster: Cluster
    settings: KubernetesSettings
    report: Report
    knows_job: Callable[[str], bool] = lambda job_id: True
    clock: Callable[[], datetime] = utc_now
    tick_s: float = _TICK_S
    ready: threading.Event = field(default_factory=threading.Event)
    _news: queue.SimpleQueue[Change] = field(default_factory=queue.SimpleQueue)
    _objects: dict[Kind, dict[str, Object]] = field(default_factory=dict)
    _events: dict[str, dict[str, Object]] = field(default_factory=dict)
    _reported: dict[Worker, WorkerStatus] = field(default_factory=dict)
    _caught: set[Kind] = field(default_factory=set)
    _blind: set[Kind] = field(default_factory=set)
    _complaint: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _followers: list[Informer] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        instance = self.settings.instance
        self.machines = Machines(self.cluster, instance)
        self.release = MachineRelease(self.cluster, self.settings, self.machines, self._tell)
        self.garbage = GarbageCollector(self.cluster, instance, self.knows_job)
        self._objects = {kind: {} for kind in _KINDS}
        self._followers = [
            Informer(
                self.cluster, kind, self._news,
                labels=Labels.selector(instance) if kind in (Kind.JOBS, Kind.PODS) else "",
            )
            for kind in _KINDS
        ]  # fmt: skip

    def start(self) -> None:
        """Begin, in threads of its own."""
        work = threading.Thread(target=self._run, name="taciturn-kubernetes", daemon=True)
        work.start()
        self._threads = [work, *(follower.start() for follower in self._followers)]

    def stop(self) -> None:
        """End. What happens from now on is told by the next one."""
        self._over.set()
        for follower in self._followers:
            follower.stop()
        for thread in self._threads:
            thread.join(5.0)

    def _run(self) -> None:
        self._load()
        reaped = self.clock()
        while not self._over.is_set():
            try:
                changed = self._take()
                if not self.ready.is_set():
                    continue
                for worker in changed or self._workers():
                    self._consider(worker)
                if (self.clock() - reaped).total_seconds() > _REAP_S:
                    reaped = self.clock()
                    self._reap()
                self._complaint = ""
            except ClusterError as error:
                self._complain("left for the next round", error)
            except Exception:
                log.exception("left for the next round")
                self._over.wait(self.tick_s)

    def _load(self) -> None:
        while not self._over.is_set():
            try:
                self.machines.load()
                return
            except ClusterError as error:
                self._complain("the cluster cannot be read", error)

    def _complain(self, what: str, error: ClusterError) -> None:
        """Log an error once, however often it comes; and rest."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("%s: %s", what, error)
        self._over.wait(self.tick_s)

    def _take(self) -> set[Worker]:
        """Take in all news that there are; returns whom they concern. Waits for a tick at most."""
        changed: set[Worker] = set()
        timeout = self.tick_s
        while True:
            try:
                news = self._news.get(timeout=timeout)
            except queue.Empty:
                return changed
            timeout = 0.0 if self._news.empty() else 0.001
            if isinstance(news, ObjectChange):
                self._keep(news)
                changed |= self._concerned(news)
            else:
                self._caught.add(news.kind)
                if isinstance(news, Forbidden):
                    self._blind.add(news.kind)
                elif isinstance(news, Caught):
                    self._blind.discard(news.kind)
                if self._caught >= set(_KINDS) and not self.ready.is_set():
                    self.ready.set()
                    return set()
            if self._news.empty():
                return changed

    def _keep(self, news: ObjectChange) -> None:
        metadata = news.item["metadata"]
        if news.kind is Kind.EVENTS:
            uid = news.item["involvedObject"].get("uid", "")
            if news.is_gone:
                self._events.get(uid, {}).pop(metadata["name"], None)
                if not self._events.get(uid):
                    self._events.pop(uid, None)
            else:
                self._events.setdefault(uid, {})[metadata["name"]] = news.item
        elif news.is_gone:
            self._objects[news.kind].pop(metadata["name"], None)
        else:
            self._objects[news.kind][metadata["name"]] = news.item

    def _concerned(self, news: ObjectChange) -> set[Worker]:
        if news.kind is Kind.NODES:
            return self._workers()
        if news.kind is Kind.EVENTS:
            name = news.item["involvedObject"].get("name", "")
            about = self._objects[Kind.PODS].get(name) or self._objects[Kind.JOBS].get(name)
            worker = Worker.labelled(about) if about is not None else None
        else:
            worker = Worker.labelled(news.item)
        return {worker} if worker is not None else set()

    def _workers(self) -> set[Worker]:
        """All that are there, or have nodes that are."""
        workers = (Worker.labelled(job) for job in self._objects[Kind.JOBS].values())
        return {worker for worker in workers if worker is not None} | set(self.machines.uses)

    def _consider(self, worker: Worker) -> None:
        job = self._objects[Kind.JOBS].get(worker.name)
        pods = self._pods_of(worker)
        self._note_nodes(worker, job, pods)
        over = all(pod["status"].get("phase") in _TERMINAL for pod in pods) and _is_over(job)
        if job is not None and _let_go(job):
            self._report_status(worker, job, pods)
            self._give_up(worker, job, pods)
            self._begin_anew(worker, job, pods)
        nodes = None if Kind.NODES in self._blind else self._objects[Kind.NODES]
        self.release.check(worker, over, nodes, self.clock())
        if job is None and worker not in self.machines.uses:
            self._reported.pop(worker, None)

    def _pods_of(self, worker: Worker) -> list[Object]:
        pods = [pod for pod in self._objects[Kind.PODS].values() if Worker.labelled(pod) == worker]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def _note_nodes(self, worker: Worker, job: Object | None, pods: list[Object]) -> None:
        """Write down each node that a pod has come to, while it is known what for."""
        pool, over = _pool_name(job), _is_over(job)
        for pod in pods:
            name = pod["spec"].get("nodeName")
            if not name or not pool or name in self.machines.uses.get(worker, {}):
                continue
            if pod["status"].get("phase") in _TERMINAL and over:
                continue  # it was noted, and is settled
            self.machines.add(worker, self._use(pod, name, pool))

    def _use(self, pod: Object, name: str, pool: str) -> Use:
        came = pod["metadata"]["creationTimestamp"]
        if Kind.NODES in self._blind:
            return Use(name, "", pool, came)
        # Watches of different kinds are not in step: what this one has not told may be there.
        node = self._objects[Kind.NODES].get(name) or self.cluster.get(Kind.NODES, name)
        if node is None:
            return Use(name, _GONE, pool, came)  # before this gateway looked
        born = node["metadata"]["creationTimestamp"]
        # A machine that was there before the pod is paid for by whoever had it until then.
        return Use(name, node["metadata"]["uid"], pool, max(born, came))

    def _report_status(self, worker: Worker, job: Object, pods: list[Object]) -> None:
        uids = [item["metadata"]["uid"] for item in (job, *pods)]
        annotations = job["metadata"].get("annotations") or {}
        facts = WorkerFacts(
            job=job,
            pods=pods,
            events=events_of(self._events, uids),
            nodes=list(self._objects[Kind.NODES].values()),
            pool=self._pool(annotations.get(POOL, "")),
            expected=int(annotations.get(NODES, 1)),
            now=self.clock(),
            start_s=self.settings.start_s,
            keeps=self.settings.keeps,
        )
        status = status_of(facts)
        if self._reported.get(worker) != status:
            self._reported[worker] = status
            self._tell(worker, status)

    def _give_up(self, worker: Worker, job: Object, pods: list[Object]) -> None:
        """All machines in time, or none: one that waits for another costs money and does nothing.

        The Job is failed by its deadline and not deleted, so that the attempt stays known; that it
        was for this, is written on it.
        """
        limit_s, start = self.settings.start_s, job["status"].get("startTime")
        late = any(_waits(pod) and self._age_s(pod) > limit_s for pod in pods)
        if not late or not start or _is_over(job) or given_up(job):
            return
        elapsed = max(1, int((self.clock() - parse_time(start)).total_seconds()))
        change = {
            "metadata": {"annotations": {GIVEN_UP: "true"}},
            "spec": {"activeDeadlineSeconds": elapsed},
        }
        patched_job = self.cluster.patch(Kind.JOBS, worker.name, change)
        if patched_job is not None:  # told at once: it may be over when the watch comes to it
            self._objects[Kind.JOBS][worker.name] = patched_job
            self._report_status(worker, patched_job, pods)

    def _begin_anew(self, worker: Worker, job: Object, pods: list[Object]) -> None:
        """A worker whose own Secret is gone, as it is when somebody deletes its policy, never
        starts: it is ended, and the job gets another one."""
        missing = f'secret "{worker.name}" not found'
        stuck = any(missing in waiting_message(pod) and self._age_s(pod) > _STUCK_S for pod in pods)
        if stuck and not _is_over(job):
            log.warning("a worker's Secret is gone", extra={"object": f"jobs/{worker.name}"})
            self.cluster.delete(Kind.JOBS, worker.name, uid=job["metadata"]["uid"])

    def _age_s(self, pod: Object) -> float:
        return (self.clock() - parse_time(pod["metadata"]["creationTimestamp"])).total_seconds()

    def _pool(self, name: str) -> Pool | None:
        return next((pool for pool in self.settings.pools if pool.name == name), None)

    def _tell(self, worker: Worker, status: WorkerStatus) -> None:
        self.report(worker.handle, status.event())

    def _reap(self) -> None:
        for name in self.garbage.reap(self.clock()):
            log.warning("removed an orphan", extra={"object": name})


def _is_over(job: Object | None) -> bool:
    """True if no pod will be made any more."""
    if job is None or "deletionTimestamp" in job["metadata"]:
        return True
    return any(
        condition["type"] in ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet")
        and condition["status"] == "True"
        for condition in (job.get("status") or {}).get("conditions") or ()
    )


def _let_go(job: Object) -> bool:
    return (job["metadata"].get("annotations") or {}).get(READY) == "true"


def _waits(pod: Object) -> bool:
    return pod["status"].get("phase") == "Pending" and not pod["spec"].get("nodeName")


def _pool_name(job: Object | None) -> str:
    return "" if job is None else (job["metadata"].get("annotations") or {}).get(POOL, "")
