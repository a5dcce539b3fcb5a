"""No worker's container starts while its policy is not there, whatever is deleted and whenever the
garbage collector comes to it; and what the server's answers mean on the way to that."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException, V1DeleteOptions

from fake_kubernetes.cluster import FakeCluster
from fake_kubernetes.store import Object
from support.kubernetes_namespace import ClusterWorld, new_order
from taciturn.server.launchers.base import LaterError, LaunchError, Order, OutageError, WorkerState
from taciturn.server.launchers.kubernetes import client as calls
from taciturn.server.launchers.kubernetes import manifests
from taciturn.server.launchers.kubernetes.client import (
    Cluster,
    ClusterUnreachableError,
    ContendedError,
    Kind,
    QuotaError,
)
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.names import Worker

ENDLESS = "import time; time.sleep(600)"
SHORT = "import time; time.sleep(0.2)"
MARK = "taciturn.dev/job"


@dataclass
class Guard:
    """Looks at each container before it starts."""

    fake: FakeCluster
    bare: list[str] = field(default_factory=list)
    started: int = 0

    def __call__(self, pod: Object) -> None:
        worker = Worker.labelled(pod)
        if worker is None:
            return
        self.started += 1
        room = pod["metadata"]["namespace"]
        policy = self.fake.store.find("networkpolicies", room, worker.name)
        owners = {each["uid"] for each in pod["metadata"].get("ownerReferences") or ()}
        has = {} if policy is None else policy["metadata"]
        mine = {each["uid"] for each in has.get("ownerReferences") or () if each["kind"] == "Job"}
        # A deletion that orphans takes the owner away from both.
        if policy is None or mine != owners:
            self.bare.append(f"{worker.name}: policy of {mine}, pod of {owners}")


@pytest.fixture
def guard(fake: FakeCluster) -> Iterator[Guard]:
    made = Guard(fake)
    fake.kubelet.starting.append(made)
    yield made
    fake.kubelet.starting.clear()
    fake.garbage.slow_s, fake.kubelet.pull_s = 0.0, 1.0


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is not repeated for long."""
    monkeypatch.setattr(calls, "_PATIENCE_S", 0.5)


def delete(world: ClusterWorld, kind: str, name: str, how: str) -> None:
    api = world.batch if kind == "job" else world.core
    namespaced = getattr(api, f"delete_namespaced_{kind}")
    try:
        namespaced(name, world.namespace, body=V1DeleteOptions(propagation_policy=how))
    except ApiException as error:
        if error.status != 404:
            raise


def owners_of(world: ClusterWorld, kind: Kind, name: str) -> list[str]:
    (found,) = world.cluster.list(kind, fields=f"metadata.name={name}")[0]
    return [each["uid"] for each in found["metadata"].get("ownerReferences") or ()]


def test_a_relaunch_while_the_garbage_collector_is_at_work(
    world: ClusterWorld, fake: FakeCluster, guard: Guard
) -> None:
    """The Job is gone, and its policy and Service are not yet: they are not the next one's."""
    fake.garbage.slow_s = 100.0
    pool = world.settings().pools[0].model_copy(update={"max_nodes": 2})
    launcher = world.launcher(world.settings(ENDLESS, pools=(pool,)), nodes=2)
    order = new_order()
    name = Worker.of(order.handle).name
    with pytest.MonkeyPatch.context() as patched:  # the gateway dies before it lets the Job go
        patched.setattr(Cluster, "patch", _dies)
        with pytest.raises(StoppedError):
            launcher.launch(order)
    first = owners_of(world, Kind.POLICIES, name)
    assert first == owners_of(world, Kind.SERVICES, name)
    delete(world, "job", name, "Background")
    world.until(lambda: launcher.status(order.handle) is WorkerState.ABSENT)
    assert owners_of(world, Kind.POLICIES, name) == first
    launcher.launch(order)
    job = world.cluster.get(Kind.JOBS, name)
    assert job is not None
    mine = [job["metadata"]["uid"]]
    assert owners_of(world, Kind.POLICIES, name) == owners_of(world, Kind.SERVICES, name) == mine
    world.until(lambda: guard.started == 2)
    fake.garbage.slow_s = 0.0
    assert guard.bare == []
    launcher.stop(order.handle, 0)


class StoppedError(Exception):
    """The gateway dies here."""


def _dies(*args: Any) -> Any:
    raise StoppedError


def test_absent_is_only_what_has_no_pod(world: ClusterWorld, fake: FakeCluster) -> None:
    """A Job deleted by hand may leave its pod: no second one runs beside it."""
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    name = Worker.of(order.handle).name
    world.until(lambda: _phases(world, order) == ["Running"])
    delete(world, "job", name, "Orphan")
    world.until(lambda: world.cluster.get(Kind.JOBS, name) is None)
    assert launcher.status(order.handle) is WorkerState.RUNNING
    assert launcher.alive() == (order.handle,)
    with pytest.raises(LaterError, match="still run"):
        launcher.launch(order)
    launcher.forget(order.job_id)
    assert _phases(world, order) == ["Running"]
    launcher.stop(order.handle, 0)
    world.until(lambda: launcher.status(order.handle) is WorkerState.ABSENT)
    launcher.forget(order.job_id)
    world.until(lambda: not world.cluster.list(Kind.POLICIES, labels=f"{MARK}={order.job_id}")[0])
    world.until(lambda: fake.store.find("secrets", world.namespace, name) is None)
    assert launcher.leftover_jobs() == ()


def _phases(world: ClusterWorld, order: Order) -> list[str]:
    return [pod.status.phase for pod in world.pods(**{MARK: order.job_id})]


@pytest.mark.parametrize("how", ["Background", "Foreground"])
def test_a_policy_goes_after_what_no_worker_can_start_without(
    world: ClusterWorld, fake: FakeCluster, guard: Guard, how: str
) -> None:
    fake.garbage.slow_s, fake.kubelet.pull_s = 20.0, 600.0
    for order in [new_order() for _ in range(3)]:
        launcher = world.launcher(world.settings(ENDLESS))
        launcher.launch(order)
        name = Worker.of(order.handle).name
        world.until(lambda order=order: _phases(world, order))
        delete(world, "job", name, how)
        world.until(lambda name=name: not _kept(fake, world, "networkpolicies", name))
        assert not _kept(fake, world, "secrets", name)


def _kept(fake: FakeCluster, world: ClusterWorld, resource: str, name: str) -> bool:
    return fake.store.find(resource, world.namespace, name) is not None


@pytest.mark.parametrize("seed", range(2))
def test_no_container_starts_without_its_policy(
    world: ClusterWorld, fake: FakeCluster, guard: Guard, seed: int
) -> None:
    """Jobs, pods and Secrets are deleted at random while workers are launched again and again."""
    chance = random.Random(seed)
    settings = world.settings(SHORT, retries=9, grace_period_s=2)
    launcher = world.launcher(settings)
    orders = [new_order() for _ in range(6)]
    fake.kubelet.pull_s = 4.0  # long enough for something to happen before a container starts
    over = threading.Event()
    destroyer = threading.Thread(target=_destroy, args=(world, orders, chance, over))
    destroyer.start()
    try:
        for _ in range(120):
            fake.garbage.slow_s = chance.choice([0.0, 4.0, 12.0])
            for order in orders:
                _launched(launcher, order)
    finally:
        over.set()
        destroyer.join()
        fake.garbage.slow_s = 0.0
    assert guard.started
    assert guard.bare == []
    for order in orders:
        launcher.stop(order.handle, 0)


def _launched(launcher: KubernetesLauncher, order: Order) -> None:
    """As the dispatcher does."""
    try:
        if launcher.status(order.handle) is WorkerState.ABSENT:
            launcher.launch(order)
    except LaterError:
        pass


def _destroy(
    world: ClusterWorld, orders: list[Order], chance: random.Random, over: threading.Event
) -> None:
    while not over.wait(chance.uniform(0, 0.02)):
        order = chance.choice(orders)
        name = Worker.of(order.handle).name
        what = chance.choice(["job", "job", "job", "pod", "secret"])
        how = chance.choice(["Background", "Background", "Foreground", "Orphan"])
        if what == "pod":
            for pod in world.pods(**{MARK: order.job_id}):
                delete(world, "pod", pod.metadata.name, "Background")
        else:
            delete(world, what, name, how if what == "job" else "Background")


def test_a_conflict_is_not_taken_for_something_that_is_there(
    world: ClusterWorld, fake: FakeCluster, guard: Guard
) -> None:
    """The policy was not made: a quota's update lost a race. It is asked for again."""
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    fake.api.contended.extend(["networkpolicies", "jobs", "secrets"])
    launcher.launch(order)
    assert fake.api.contended == []
    world.until(lambda: guard.started)
    assert guard.bare == []
    launcher.stop(order.handle, 0)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("resource", ["jobs", "networkpolicies", "secrets"])
def test_conflicts_without_end_let_nothing_go(
    world: ClusterWorld, fake: FakeCluster, resource: str
) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    fake.api.contended.extend([resource] * 99)
    try:
        with pytest.raises(ContendedError, match="Conflict"):
            launcher.launch(order)
    finally:
        fake.api.contended.clear()
    assert launcher.status(order.handle) is WorkerState.ABSENT
    assert not world.pods(**{MARK: order.job_id})


def test_a_full_quota_is_worth_waiting_for(world: ClusterWorld, fake: FakeCluster) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    fake.api.full.add("secrets")
    try:
        with pytest.raises(QuotaError, match="exceeded quota") as caught:
            launcher.launch(order)
    finally:
        fake.api.full.clear()
    assert isinstance(caught.value, LaterError)
    assert launcher.status(order.handle) is WorkerState.ABSENT
    launcher.launch(order)
    world.until(lambda: launcher.status(order.handle) is WorkerState.ENDED)


def test_a_policy_of_somebody_else_is_not_touched(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    worker = Worker.of(order.handle)
    owner = manifests.owner_of("x", "00000000-0000-4000-8000-000000000000")
    theirs = manifests.network_policy(worker, owner, 1, launcher.settings)
    theirs.metadata.labels, theirs.metadata.owner_references = {}, None
    world.cluster.create(Kind.POLICIES, theirs)
    with pytest.raises(LaunchError, match="belongs to no worker"):
        launcher.launch(order)
    assert not world.pods(**{MARK: order.job_id})


def test_a_patch_for_another_object_of_that_name_changes_nothing(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Cluster, "patch", _dies)
        with pytest.raises(StoppedError):
            launcher.launch(order)
    name = Worker.of(order.handle).name
    change = {
        "metadata": {"uid": "00000000-0000-4000-8000-000000000000"}, "spec": {"suspend": False}
    }  # fmt: skip
    assert world.cluster.patch(Kind.JOBS, name, change) is None
    job = world.cluster.get(Kind.JOBS, name)
    assert job is not None
    assert job["spec"]["suspend"] is True
    launcher.stop(order.handle, 0)


@pytest.mark.usefixtures("patience")
def test_a_server_that_is_not_there_is_an_outage_and_said_once(
    world: ClusterWorld,
    fake: FakeCluster,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = fake.kubeconfig.read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    path = tmp_path / "kubeconfig"
    path.write_text(told.replace(str(fake.server.server_address[1]), str(free)), "utf-8")
    away = Cluster.connect(world.namespace, path)
    settings = world.settings()
    launcher = KubernetesLauncher(away, settings, world.launcher(settings).need_of)
    order = new_order()
    asked = [
        launcher.alive,
        launcher.leftover_jobs,
        lambda: launcher.status(order.handle),
        lambda: launcher.launch(order),
        lambda: launcher.stop(order.handle, 0),
    ]
    with caplog.at_level(logging.DEBUG):
        for call in asked:
            with pytest.raises(OutageError):
                call()
    assert [each.getMessage() for each in caplog.records if "Retry" in each.getMessage()] == []


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("status", [404, 403])
def test_what_is_no_api_server_says_nothing_of_objects(
    world: ClusterWorld, fake: FakeCluster, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's page does not mean that a worker is not there."""
    launcher, order = world.launcher(world.settings()), new_order()
    monkeypatch.setattr(fake.server, "page", status)
    with pytest.raises(ClusterUnreachableError, match=f"{status}, and not from an API server"):
        launcher.status(order.handle)
