"""Ways in which a worker could run without its policy, twice, or unaccounted for, on a cluster
where others change things at the same time: each is killed by the check that is for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from kubernetes.client import V1DeleteOptions

from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import SPEED, ClusterWorld, new_order, with_namespace
from taciturn.server.launchers.base import LaterError, Order, WorkerState
from taciturn.server.launchers.kubernetes import client as calls
from taciturn.server.launchers.kubernetes import launcher as launching
from taciturn.server.launchers.kubernetes import manifests
from taciturn.server.launchers.kubernetes.client import Cluster, ClusterError, Kind
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.machines import Machines, Use
from taciturn.server.launchers.kubernetes.names import Worker

Patch = pytest.MonkeyPatch
ENDLESS = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def world() -> Iterator[ClusterWorld]:
    with FakeCluster(speed=SPEED) as fake:
        yield from with_namespace(fake.kubeconfig, fake)


def delete_job(world: ClusterWorld, name: str, how: str) -> None:
    world.batch.delete_namespaced_job(
        name, world.namespace, body=V1DeleteOptions(propagation_policy=how)
    )
    world.until(lambda: world.cluster.get(Kind.JOBS, name) is None)


def begun(world: ClusterWorld, order: Order) -> KubernetesLauncher:
    """A launch of a gateway that dies before it lets the Job go."""

    def dies(*args: Any) -> Any:
        raise KeyboardInterrupt

    launcher = world.launcher(world.settings(ENDLESS))
    with Patch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Cluster, "patch", dies)
        launcher.launch(order)
    return launcher


def a_lost_race_is_tried_again(world: ClusterWorld) -> None:
    """What was not made is not counted on."""
    assert world.fake is not None
    world.fake.api.contended.append("configmaps")
    worker, use = Worker(new_order().job_id, 1), Use("n", "u", "p", "2026-01-01T00:00:00Z")
    Machines(world.cluster, "test-mutants").add(worker, use)
    written = world.cluster.list(Kind.CONFIG_MAPS, fields=f"metadata.name={worker.name}")[0]
    world.fake.api.contended.clear()
    assert written


def a_relaunch_has_a_policy_of_its_own(world: ClusterWorld) -> None:
    assert world.fake is not None
    order, garbage = new_order(), world.fake.garbage
    garbage.slow_s = 1000.0
    launcher, name = begun(world, order), Worker.of(order.handle).name
    delete_job(world, name, "Background")
    launcher.launch(order)
    garbage.slow_s = 0.0
    job = world.cluster.get(Kind.JOBS, name)
    (policy,) = world.cluster.list(Kind.POLICIES, fields=f"metadata.name={name}")[0]
    launcher.stop(order.handle, 0)
    assert job is not None
    owners = [each["uid"] for each in policy["metadata"]["ownerReferences"]]
    assert owners == [job["metadata"]["uid"]]


def the_secret_goes_before_the_policy(world: ClusterWorld) -> None:
    assert world.fake is not None
    store, garbage = world.fake.store, world.fake.garbage
    garbage.slow_s = 10.0
    order = new_order()
    begun(world, order)
    name = Worker.of(order.handle).name
    delete_job(world, name, "Background")
    world.until(lambda: store.find("networkpolicies", world.namespace, name) is None)
    left = store.find("secrets", world.namespace, name)
    garbage.slow_s = 0.0
    assert left is None


def no_second_worker_beside_an_orphan(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    world.until(lambda: world.pods(**{"taciturn.dev/job": order.job_id}))
    delete_job(world, Worker.of(order.handle).name, "Orphan")
    with suppress(LaterError):
        launcher.launch(order)
    state, count = (
        launcher.status(order.handle),
        len(world.pods(**{"taciturn.dev/job": order.job_id})),
    )
    job = world.cluster.get(Kind.JOBS, Worker.of(order.handle).name)
    with Patch.context() as patched:
        patched.setattr(KubernetesLauncher, "_pods", _PODS)
        launcher.stop(order.handle, 0)
    assert (state, count, job) == (WorkerState.RUNNING, 1, None)


_PODS = KubernetesLauncher._pods


def any_409_counts_as_there(patch: Patch) -> None:
    sound = calls._error

    def broken(status: int, said: Mapping[str, Any]) -> ClusterError:
        return ClusterError(409, "", "AlreadyExists") if status == 409 else sound(status, said)

    patch.setattr(calls, "_error", broken)


def a_policy_of_another_owner_counts(patch: Patch) -> None:
    patch.setattr(launching, "_is_owned", lambda found, uid: True)


def the_policy_does_not_wait(patch: Patch) -> None:
    sound = manifests.network_policy

    def broken(*args: Any) -> Any:
        made = sound(*args)
        made.metadata.finalizers = None
        return made

    patch.setattr(manifests, "network_policy", broken)


def pods_of_an_earlier_job_do_not_count(patch: Patch) -> None:
    patch.setattr(KubernetesLauncher, "_pods", lambda self, selector: [])


MUTANTS: list[tuple[Callable[[Patch], None], Callable[[ClusterWorld], None]]] = [
    (any_409_counts_as_there, a_lost_race_is_tried_again),
    (a_policy_of_another_owner_counts, a_relaunch_has_a_policy_of_its_own),
    (the_policy_does_not_wait, the_secret_goes_before_the_policy),
    (pods_of_an_earlier_job_do_not_count, no_second_worker_beside_an_orphan),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_a_mutant_is_killed_by_its_check(
    mutant: Callable[[Patch], None], check: Callable[[ClusterWorld], None], world: ClusterWorld,
    monkeypatch: Patch,
) -> None:  # fmt: skip
    check(world)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        until_it_shows(check, world)


def until_it_shows(check: Callable[[ClusterWorld], None], world: ClusterWorld) -> None:
    """The garbage collector takes an order of its own."""
    for _ in range(10):
        check(world)
