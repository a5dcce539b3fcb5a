"""Many jobs in a row on Kubernetes, with deaths at random points: is anything left, or run twice?

    python bench/kubernetes_jobs.py --jobs 100
    python bench/kubernetes_jobs.py --jobs 100 --kubeconfig ~/.kube/config --image python:3.12-slim

Without --kubeconfig, the tests' fake cluster is used, with an autoscaler, and nodes die as well.
Deaths: a worker ends itself, a pod is deleted, the gateway dies between two calls of a launch or
while it watches, a node is lost or taken away, the API server restarts. What counts as run twice:
two pods of a job that worked at the same time, or two that finished the work.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kubernetes.client import ApiException

from fake_kubernetes.autoscaler import Group
from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import IMAGE, SMALL, ClusterWorld, with_namespace
from taciturn.server.launchers.base import LaunchError, Order, WorkerState
from taciturn.server.launchers.kubernetes.client import Cluster, ClusterError, Kind, Object
from taciturn.server.launchers.kubernetes.informer import Informer, ObjectChange
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.monitor import Monitor
from taciturn.server.launchers.kubernetes.names import Labels, Worker
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.server.launchers.kubernetes.sizing import Machine, Need
from taciturn.wire.events import NodeEvent

WORK = """
import os, random, time
time.sleep(random.uniform(0, {work_s}))
if random.random() < {death}:
    os._exit(random.choice([1, 137]))
time.sleep(random.uniform(0, {work_s}))
"""
ATTEMPTS = 6
KINDS = (Kind.JOBS, Kind.PODS, Kind.SERVICES, Kind.SECRETS, Kind.POLICIES, Kind.CONFIG_MAPS)


class GatewayDeathError(Exception):
    """The gateway dies here."""


@dataclass
class Figures:
    """What happened."""

    deaths: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    released: set[str] = field(default_factory=set)
    pods: dict[str, Object] = field(default_factory=dict)

    def __call__(self, handle: str, event: NodeEvent) -> None:
        if event.code == "node.released":
            self.released.add(event.text.split()[1])

    def take(self, seen: ObjectChange) -> None:
        """The last that was seen of each pod."""
        uid = seen.item["metadata"]["uid"]
        self.pods[uid] = seen.item

    def run_twice(self) -> list[str]:
        """Jobs of which two pods finished the work, or worked at once."""
        jobs: dict[str, list[Object]] = {}
        for pod in self.pods.values():
            worker = Worker.labelled(pod)
            assert worker is not None
            jobs.setdefault(worker.job_id, []).append(pod)
        return [job for job, pods in jobs.items() if _twice(pods)]


def _twice(pods: list[Object]) -> bool:
    if sum(pod["status"].get("phase") == "Succeeded" for pod in pods) > 1:
        return True
    spans = sorted(filter(None, map(_span, pods)))
    return any(later[0] < earlier[1] for earlier, later in pairwise(spans))


def _span(pod: Object) -> tuple[str, str] | None:
    """When the container worked, as far as its node said."""
    states = pod["status"].get("containerStatuses") or ()
    ended = (states[0]["state"] if states else {}).get("terminated") or {}
    if "startedAt" not in ended or "finishedAt" not in ended:
        return None
    return ended["startedAt"], ended["finishedAt"]


@dataclass
class Bench:
    """Runs the jobs."""

    world: ClusterWorld
    settings: KubernetesSettings
    gpus: int
    figures: Figures
    dice: random.Random
    death: float

    def __post_init__(self) -> None:
        need = Need(Machine(self.settings.pools[0], 1, self.gpus))
        self.launcher = KubernetesLauncher(self.world.cluster, self.settings, lambda job: need)

    def job(self, _: int) -> None:
        """One job, from launch to oblivion, as the gateway's dispatcher does it."""
        job_id = f"job_{secrets.token_hex(8)}"
        for attempt in range(1, ATTEMPTS + 1):
            order = Order(job_id, attempt, {"TACITURN_JOB": job_id, "TACITURN_TOKEN": "x"})
            self.figures.attempts += 1
            self._launch(order)
            if self._wait(order):
                self.figures.states["succeeded"] += 1
                break
        else:
            self.figures.states["given up"] += 1
        self._again(lambda: self.launcher.forget(job_id))

    def _launch(self, order: Order) -> None:
        """Until it is done, however often the gateway dies on the way."""
        while True:
            try:
                if self.dice.random() < self.death:
                    mortal = Cluster(_Mortal(self.world.cluster.api, self.dice.randrange(6)),
                                     self.world.namespace)  # type: ignore[arg-type]  # fmt: skip
                    KubernetesLauncher(mortal, self.settings, self.launcher.need_of).launch(order)
                self.launcher.launch(order)
                return
            except GatewayDeathError:
                self.figures.deaths["gateway, in a launch"] += 1
            except LaunchError:
                time.sleep(0.2)

    def _wait(self, order: Order) -> bool:
        name = Worker.of(order.handle).name
        doomed = self.dice.random() < self.death
        due = time.monotonic() + self.dice.uniform(0, 2 if self.world.fake else 20)
        while self._again(lambda: self.launcher.status(order.handle)) is WorkerState.RUNNING:
            if doomed and time.monotonic() > due:
                doomed = not self._delete_pod(order)
            time.sleep(self.world.reading() * 2)
        job = self._again(lambda: self.world.cluster.get(Kind.JOBS, name))
        conditions = {} if job is None else {c["type"] for c in job["status"].get("conditions", ())}
        return "Complete" in conditions

    def _delete_pod(self, order: Order) -> bool:
        for pod in self.world.pods(**{"taciturn.dev/job": order.job_id}):
            if pod.status.phase == "Running":
                try:
                    self.world.core.delete_namespaced_pod(
                        pod.metadata.name, self.world.namespace, grace_period_seconds=1
                    )
                except ApiException:
                    return False
                self.figures.deaths["pod, deleted"] += 1
                return True
        return False

    def _again(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except ClusterError:
                time.sleep(0.2)

    def left(self) -> dict[str, int]:
        """What is labelled as this gateway's and still there."""
        chosen = Labels.selector(self.settings.instance)
        return {str(kind): len(self.world.cluster.list(kind, labels=chosen)[0]) for kind in KINDS}


class _Mortal:
    """An API client whose gateway dies after so many requests."""

    def __init__(self, api: Any, requests: int) -> None:
        self._api, self._left = api, requests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def call_api(self, *args: Any, **more: Any) -> Any:
        """One request less to live."""
        if self._left == 0:
            raise GatewayDeathError
        self._left -= 1
        return self._api.call_api(*args, **more)


def accidents(
    fake: FakeCluster, figures: Figures, dice: random.Random, over: Callable[[], bool]
) -> None:
    """Nodes die and the API server restarts, until it is over."""
    while not over():
        time.sleep(dice.uniform(0.3, 1.5))
        nodes = [node["metadata"]["name"] for node in fake.store.all("nodes")]
        nodes = [name for name in nodes if name.startswith("gpu-")]
        kind = dice.choice(["lose", "preempt", "restart"])
        if kind == "restart":
            figures.deaths["API server, restarted"] += 1
            fake.restart_api()
        elif nodes:
            figures.deaths["node, lost" if kind == "lose" else "node, taken away"] += 1
            getattr(fake, kind)(dice.choice(nodes))


@contextmanager
def a_world(path: Path | None) -> Iterator[ClusterWorld]:
    """The cluster of a kubeconfig, or the fake one."""
    if path is not None:
        yield from with_namespace(path, None)
        return
    with FakeCluster(speed=40) as fake:
        fake.add_group(Group("gpu", largest=8, create_s=10, ready_s=4, driver_s=2, idle_s=30))
        yield from with_namespace(fake.kubeconfig, fake)
        for error in fake.broken + fake.server.broken:
            raise error


def main() -> int:
    """Print figures; 1 if anything was left or run twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--kubeconfig", type=Path)
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument("--death", type=float, default=0.3, help="chance of each kind of death")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with a_world(arguments.kubeconfig) as world:
        return run(world, arguments)


def run(world: ClusterWorld, arguments: argparse.Namespace) -> int:
    """All jobs, and then the count."""
    fake, dice, figures = world.fake, random.Random(arguments.seed), Figures()
    pool = SMALL
    if fake is not None:
        selector = {"pool": "gpu"}
        pool = SMALL.model_copy(
            update={"name": "gpu", "gpus": 1, "node_selector": selector, "scales": True}
        )
    code = WORK.format(work_s=0.4 if fake else 4, death=arguments.death)
    settings = world.settings(code, pools=(pool,), image=arguments.image, retries=2)
    bench = Bench(world, settings, pool.gpus, figures, dice, arguments.death)
    monitors = Monitors(world, settings, figures)
    pods: Any = _Pods(figures)
    follower = Informer(world.cluster, Kind.PODS, pods, Labels.selector(settings.instance))
    follower.start()
    began, over = time.monotonic(), False
    with ThreadPoolExecutor(arguments.at_once + 2) as threads:
        if fake is not None:
            threads.submit(accidents, fake, figures, dice, lambda: over)
        threads.submit(monitors.restart_now_and_then, dice, lambda: over)
        list(threads.map(bench.job, range(arguments.jobs)))
        over = True
    took_s = time.monotonic() - began
    nodes_left = settle(world, bench)
    monitors.stop()
    follower.stop()
    return report(bench, figures, nodes_left, took_s)


@dataclass
class Monitors:
    """The gateway's monitor, which dies as well."""

    world: ClusterWorld
    settings: KubernetesSettings
    figures: Figures

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.running = Monitor(
            self.world.cluster, self.settings, self.figures, clock=self.world.now, tick_s=0.05
        )
        self.running.start()

    def restart_now_and_then(self, dice: random.Random, over: Callable[[], bool]) -> None:
        """Until it is over."""
        while not over():
            time.sleep(dice.uniform(1, 4))
            self.running.stop()
            self.figures.deaths["gateway, while it watches"] += 1
            self._start()

    def stop(self) -> None:
        """For good."""
        self.running.stop()


class _Pods:
    """A queue that keeps the last state of each pod."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def put(self, news: object) -> None:
        """As queues have it."""
        if isinstance(news, ObjectChange):
            self._figures.take(news)


def settle(world: ClusterWorld, bench: Bench) -> list[str]:
    """Wait until nothing is left, or it is clear that something stays; returns nodes left."""

    def nodes() -> list[str]:
        if world.fake is None:
            return []
        found = (node["metadata"]["name"] for node in world.fake.store.all("nodes"))
        return [name for name in found if name.startswith("gpu-")]

    end = time.monotonic() + world.patience_s
    while time.monotonic() < end and (nodes() or any(bench.left().values())):
        time.sleep(0.2)
    return nodes()


def report(bench: Bench, figures: Figures, nodes_left: list[str], took_s: float) -> int:
    """Print; 1 if anything is wrong."""
    left, twice = bench.left(), figures.run_twice()
    fake = bench.world.fake
    print(f"jobs: {dict(figures.states)} in {took_s:.0f} s; attempts {figures.attempts}, "
          f"pods {len(figures.pods)}")  # fmt: skip
    print("deaths: " + ", ".join(f"{n} x {kind}" for kind, n in sorted(figures.deaths.items())))
    counts = [f"{n} {kind}" for kind, n in left.items()] + [f"{len(nodes_left)} nodes"]
    print("left: " + ", ".join(counts))
    print(f"run twice: {len(twice)}")
    if fake is not None:
        made = set(fake.autoscaler.made)
        used = {pod["spec"].get("nodeName") for pod in figures.pods.values()} & made
        proven = len(figures.released & used)
        print(f"nodes: {len(made)} made, {len(used)} had workers, {proven} of them proven gone")
    return int(bool(any(left.values()) or twice or nodes_left or figures.states["given up"]))


if __name__ == "__main__":
    sys.exit(main())
