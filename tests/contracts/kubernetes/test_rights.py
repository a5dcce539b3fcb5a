"""What the launcher may do, and what it must not need: no Secret is read, no pod has more rights
than `restricted` allows, and nothing of the gateway's own environment goes along."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client

from fake_kubernetes.cluster import FakeCluster
from fake_kubernetes.security import ENFORCED
from support.helm_chart import of_kind, rendered
from support.kubernetes_namespace import SMALL, ClusterWorld, EventRecorder, new_order
from taciturn.server.launchers.base import WorkerState
from taciturn.server.launchers.kubernetes.client import Cluster, Kind
from taciturn.server.launchers.kubernetes.garbage import GarbageCollector
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.monitor import Monitor
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.launchers.kubernetes.sizing import Machine, Need

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


def granted() -> set[tuple[str, str]]:
    """Verbs and resources of the chart's roles."""
    return {
        (verb, resource)
        for kind in ("Role", "ClusterRole")
        for rule in of_kind(kind, rendered())["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def by_the_chart(fake: FakeCluster) -> Iterator[None]:
    """A gateway that may do what the chart's roles say and nothing else."""
    allowed = granted()
    everything = {(verb, str(kind)) for verb in VERBS for kind in Kind}
    everywhere = {(verb, f"{kind}/*") for verb in VERBS for kind in Kind if kind is not Kind.NODES}
    fake.api.forbidden |= (everything - allowed) | everywhere
    yield
    fake.api.forbidden.clear()


def test_the_charts_roles_are_enough_for_a_workers_whole_life(
    by_the_chart: None,
    world: ClusterWorld,
    monitor: Callable[..., tuple[Monitor, EventRecorder]],
) -> None:
    pool = SMALL.model_copy(update={"max_nodes": 2})
    settings = world.settings("import time; time.sleep(0.3)", pools=(pool,))
    launcher, order, other = world.launcher(settings, nodes=2), new_order(), new_order()
    _, recorder = monitor(settings)
    launcher.launch(order)
    world.until(lambda: launcher.status(order.handle) is WorkerState.ENDED)
    world.until(lambda: "node.kept" in recorder.codes())
    launcher.forget(order.job_id)
    world.until(lambda: launcher.status(order.handle) is WorkerState.ABSENT)
    launcher.launch(other)
    launcher.stop(other.handle, 0)
    world.until(lambda: launcher.status(other.handle) is WorkerState.ABSENT)
    launcher.launch(other)
    reaper = GarbageCollector(world.cluster, settings.instance, lambda job_id: False, young_s=0)
    assert f"jobs/{Worker.of(other.handle).name}" in reaper.reap(world.now())
    world.until(lambda: launcher.leftover_jobs() == ())


@pytest.fixture
def restricted(world: ClusterWorld) -> Iterator[ClusterWorld]:
    """The same cluster, in a namespace where only restricted pods run."""
    name = f"taciturn-test-{secrets.token_hex(4)}"
    metadata = client.V1ObjectMeta(name=name, labels={ENFORCED: "restricted"})
    world.core.create_namespace(client.V1Namespace(metadata=metadata))
    made = ClusterWorld(world.path, name, world.fake)
    made.make_account()
    yield made
    world.core.delete_namespace(name)


def test_a_worker_runs_where_only_restricted_pods_may(restricted: ClusterWorld) -> None:
    launcher, order = restricted.launcher(restricted.settings()), new_order()
    launcher.launch(order)
    restricted.until(lambda: launcher.status(order.handle) is WorkerState.ENDED)
    job = restricted.cluster.get(Kind.JOBS, Worker.of(order.handle).name)
    assert job is not None
    assert job["status"]["succeeded"] == 1


def test_a_pod_with_more_rights_does_not_run_there(restricted: ClusterWorld) -> None:
    """So that the test above says something; and people are told why nothing happens."""
    settings = restricted.settings()
    launcher, order = restricted.launcher(settings), new_order()
    made = Monitor(restricted.cluster, settings, recorder := EventRecorder(), clock=restricted.now)
    made.start()
    create = Cluster.create

    def privileged(self: Cluster, kind: Kind, body: Any) -> Any:
        if kind is Kind.JOBS:
            body.spec.template.spec.containers[0].security_context.allow_privilege_escalation = True
        return create(self, kind, body)

    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Cluster, "create", privileged)
            launcher.launch(order)
        restricted.until(lambda: "provisioning.refused" in recorder.codes())
        assert "pod security level" in recorder.text("provisioning.refused")
        assert not restricted.pods(**{"taciturn.dev/job": order.job_id})
    finally:
        made.stop()
        launcher.stop(order.handle, 0)


def test_nothing_of_the_gateways_environment_goes_along(
    world: ClusterWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data's credentials and the key of checkpoints are in Secrets of their owner. Where the
    gateway has such variables by mistake, they stay with it; and it never asks for a Secret."""
    canaries = {
        "PGPASSWORD": "canary-of-the-data", "AWS_SECRET_ACCESS_KEY": "canary-of-the-store",
        "TACITURN_CHECKPOINT_KEY": "ca" * 32, "TACITURN_LEDGER_KEY": "fe" * 32,
        "TACITURN_DATABASE_URL": "postgresql://canary-of-the-ledger",
    }  # fmt: skip
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    sent: list[tuple[str, str, str]] = []
    send = Cluster._send

    def noting(self: Cluster, method: str, path: str, query: Any, body: Any, *more: Any) -> Any:
        sent.append((method, path, f"{query} {body}"))
        return send(self, method, path, query, body, *more)

    monkeypatch.setattr(Cluster, "_send", noting)
    owners = {
        "checkpoint_url": "s3://bucket/checkpoints", "checkpoint_secret": "vault",
        "data_secret": "owners",
    }  # fmt: skip
    settings = world.settings(**owners)
    need = Need(Machine(settings.pools[0]), data_secret="owners", checkpoint_secret="vault")
    launcher = KubernetesLauncher(world.cluster, settings, lambda job_id: need)
    order = new_order(TACITURN_JOB_TOKEN="of this job")
    launcher.launch(order)
    launcher.stop(order.handle, 0)
    world.until(lambda: launcher.status(order.handle) is WorkerState.ABSENT)
    said = "\n".join(" ".join(each) for each in sent)
    assert "of this job" in said
    assert "'name': 'vault'" in said
    assert not [name for name, value in canaries.items() if value in said]
    secret_calls = {method for method, path, _ in sent if "/secrets" in path}
    assert secret_calls <= {"POST", "DELETE"}
    (made,) = [text for method, path, text in sent if (method, path[-8:]) == ("POST", "/secrets")]
    assert [name for name in canaries if name in made] == []
