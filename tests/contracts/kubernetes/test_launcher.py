"""The launcher's promises: at most one worker of an attempt; found, stopped, forgotten."""

from __future__ import annotations

import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kubernetes import client

from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import SMALL, ClusterWorld, new_order
from taciturn.server.launchers.base import LaunchError, Order, WorkerState, handle_of
from taciturn.server.launchers.kubernetes import manifests
from taciturn.server.launchers.kubernetes.client import ClusterError, Kind
from taciturn.server.launchers.kubernetes.garbage import GarbageCollector
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.names import Labels, Worker
from taciturn.server.launchers.kubernetes.settings import EgressRule
from taciturn.server.launchers.kubernetes.sizing import Machine, Need
from taciturn.wire.exits import FINAL, WorkerExit

ENDLESS = "import time; time.sleep(600)"
OWNED = (Kind.JOBS, Kind.PODS, Kind.SERVICES, Kind.SECRETS, Kind.POLICIES, Kind.CONFIG_MAPS)


def left(world: ClusterWorld, launcher: KubernetesLauncher) -> dict[str, list[str]]:
    """Everything that is labelled as this gateway's."""
    chosen = Labels.selector(launcher.settings.instance)
    found = {kind: world.cluster.list(kind, labels=chosen)[0] for kind in OWNED}
    return {
        str(kind): [each["metadata"]["name"] for each in objects]
        for kind, objects in found.items()
        if objects
    }


def ended(world: ClusterWorld, launcher: KubernetesLauncher, handle: str) -> None:
    world.until(lambda: launcher.status(handle) is WorkerState.ENDED)


def log_of(world: ClusterWorld, order: Order) -> str:
    (pod,) = world.pods(**{"taciturn.dev/job": order.job_id})
    return str(world.core.read_namespaced_pod_log(pod.metadata.name, world.namespace))


def test_a_worker_lives_and_ends_and_is_forgotten(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    assert launcher.status(order.handle) is WorkerState.ABSENT
    assert launcher.launch(order) == order.handle == handle_of(order.job_id, 1)
    assert launcher.status(order.handle) in (WorkerState.RUNNING, WorkerState.ENDED)
    ended(world, launcher, order.handle)
    assert launcher.alive() == ()
    assert launcher.leftover_jobs() == (order.job_id,)
    launcher.forget(order.job_id)
    world.until(lambda: not left(world, launcher))
    assert launcher.status(order.handle) is WorkerState.ABSENT


def test_the_worker_is_told_its_environment_by_a_secret(world: ClusterWorld) -> None:
    code = "import os; print(os.environ['TACITURN_TOKEN'], os.environ['TACITURN_WORKSPACE'])"
    launcher = world.launcher(world.settings(code))
    order = new_order(TACITURN_TOKEN="a token: =&$(HOME)")
    launcher.launch(order)
    ended(world, launcher, order.handle)
    log = log_of(world, order)
    assert log.startswith("a token: =&$(HOME) ")
    (pod,) = world.pods(**{"taciturn.dev/job": order.job_id})
    assert "a token" not in str(pod)


def test_workers_reach_the_gateway_from_within(world: ClusterWorld) -> None:
    """People come by an ingress; workers' policies let them reach the gateway's pods alone."""
    code = "import os; print(os.environ['TACITURN_GATEWAY_URL'])"
    within = "http://taciturn.privacy.svc:80"
    for told, expected in ((within, within), ("", "https://taciturn.example")):
        launcher = world.launcher(world.settings(code, gateway_url=told))
        order = new_order(TACITURN_GATEWAY_URL="https://taciturn.example")
        launcher.launch(order)
        ended(world, launcher, order.handle)
        assert log_of(world, order).strip() == expected


@pytest.mark.parametrize(
    ("told", "expected"), [("/gateways/own/key.pem", "None"), ("env:SIGNING", "env:SIGNING")]
)
def test_a_key_file_of_the_gateways_machine_is_not_looked_for(
    world: ClusterWorld, told: str, expected: str
) -> None:
    """Pods have the one of `signing_secret`, or none; they would fail over another path."""
    code = "import os; print(os.environ.get('TACITURN_SIGNING_KEY'))"
    launcher, order = world.launcher(world.settings(code)), new_order(TACITURN_SIGNING_KEY=told)
    launcher.launch(order)
    ended(world, launcher, order.handle)
    assert log_of(world, order).strip() == expected


def test_it_runs_without_rights_and_can_write_its_workspace_and_tmp(world: ClusterWorld) -> None:
    code = (
        "import os, tempfile; open(os.environ['TACITURN_WORKSPACE'] + '/x', 'w').close();"
        "tempfile.TemporaryFile().write(b'x'); print('wrote');"
        "print(os.path.exists('/var/run/secrets/kubernetes.io'))"
    )
    launcher, order = world.launcher(world.settings(code)), new_order()
    launcher.launch(order)
    ended(world, launcher, order.handle)
    assert log_of(world, order).split() == ["wrote", "False"]


def test_eight_gateways_launch_one_worker(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: attempt(launcher, order), range(8)))
    assert order.handle in results
    world.until(lambda: world.pods(**{"taciturn.dev/job": order.job_id}))
    assert launcher.launch(order) == order.handle
    assert launcher.alive() == (order.handle,)
    assert len(world.pods(**{"taciturn.dev/job": order.job_id})) == 1
    launcher.stop(order.handle, 0)


def attempt(launcher: KubernetesLauncher, order: Order) -> str | None:
    try:
        return launcher.launch(order)
    except LaunchError:
        return None  # another one is at it


def test_an_attempt_that_has_ended_is_not_started_again(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    launcher.launch(order)
    ended(world, launcher, order.handle)
    launcher.launch(order)
    assert launcher.status(order.handle) is WorkerState.ENDED
    assert len(world.pods(**{"taciturn.dev/job": order.job_id})) == 1


class StoppedError(Exception):
    """The gateway dies here."""


@pytest.mark.parametrize("survived", range(6))
def test_a_launch_that_was_cut_off_is_done_again(
    world: ClusterWorld, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all its calls to the API server only so many were made."""
    code = "import os; print(os.environ['TACITURN_TOKEN'])"
    launcher = world.launcher(world.settings(code))
    order = new_order(TACITURN_TOKEN="old")
    calls = iter(range(100))
    call = type(world.cluster)._call

    def dying(*args: Any, **more: Any) -> Any:
        if next(calls) >= survived:
            raise StoppedError
        return call(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(type(world.cluster), "_call", dying)
        with pytest.raises(StoppedError):
            launcher.launch(order)
    assert launcher.status(order.handle) is WorkerState.ABSENT
    assert not world.pods(**{"taciturn.dev/job": order.job_id})
    launcher.launch(replace(order, environment={"TACITURN_TOKEN": "new"}))
    ended(world, launcher, order.handle)
    assert log_of(world, order).strip() == "new"


def test_stopping_gives_grace_and_leaves_nothing(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    world.until(lambda: running(world, order))
    launcher.stop(order.handle, 2)
    launcher.stop(order.handle, 2)
    world.until(lambda: not left(world, launcher))
    assert launcher.status(order.handle) is WorkerState.ABSENT
    launcher.stop(order.handle, 2)


def test_a_worker_that_will_not_end_is_killed_after_its_grace(world: ClusterWorld) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"import signal, time; {ignore}; print('deaf', flush=True); time.sleep(6000)"
    launcher, order = world.launcher(world.settings(code, grace_period_s=6000)), new_order()
    launcher.launch(order)
    world.until(lambda: running(world, order) and "deaf" in log_of(world, order))
    assert launcher.status(order.handle) is WorkerState.RUNNING
    launcher.stop(order.handle, 1)
    world.until(lambda: not left(world, launcher))


def running(world: ClusterWorld, order: Order) -> bool:
    pods = world.pods(**{"taciturn.dev/job": order.job_id})
    return bool(pods) and all(pod.status.phase == "Running" for pod in pods)


def test_the_living_are_not_forgotten(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    launcher.forget(order.job_id)
    assert launcher.status(order.handle) is WorkerState.RUNNING
    launcher.stop(order.handle, 0)


@pytest.mark.parametrize("code", sorted({*map(int, FINAL), int(WorkerExit.REPORTED)}))
def test_final_exits_are_not_started_again(world: ClusterWorld, code: int) -> None:
    launcher = world.launcher(world.settings(f"raise SystemExit({code})"))
    order = new_order()
    launcher.launch(order)
    ended(world, launcher, order.handle)
    assert len(world.pods(**{"taciturn.dev/job": order.job_id})) == 1


def test_other_ends_are_tried_again_and_only_so_often(world: ClusterWorld) -> None:
    code = f"raise SystemExit({int(WorkerExit.UNREACHABLE)})"
    launcher, order = world.launcher(world.settings(code, retries=1)), new_order()
    launcher.launch(order)
    world.until(lambda: len(world.pods(**{"taciturn.dev/job": order.job_id})) == 2)
    ended(world, launcher, order.handle)
    assert len(world.pods(**{"taciturn.dev/job": order.job_id})) == 2


def test_a_killed_worker_is_replaced(world: ClusterWorld, fake: FakeCluster) -> None:
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    names = []
    for _ in range(2):
        world.until(lambda: running(world, order) or [*alive_pods(world, order)])
        (name,) = world.until(lambda: alive_pods(world, order))
        names.append(name)
        fake.kill(name, world.namespace)
        world.until(lambda name=name: name not in alive_pods(world, order))
    world.until(lambda: alive_pods(world, order))
    assert len(set(names)) == 2
    assert launcher.alive() == (order.handle,)
    launcher.stop(order.handle, 0)


def alive_pods(world: ClusterWorld, order: Order) -> list[str]:
    pods = world.pods(**{"taciturn.dev/job": order.job_id})
    return [pod.metadata.name for pod in pods if pod.status.phase == "Running"]


MEETING = """
import os, socket, time
rank, n = int(os.environ['TACITURN_NODE_RANK']), int(os.environ['TACITURN_NODES'])
host, port = os.environ['TACITURN_MASTER_ADDR'], int(os.environ['TACITURN_MASTER_PORT'])
if rank == 0:
    server = socket.create_server(('', port))
    met = {server.accept()[0].recv(9) for _ in range(n - 1)}
    print('met', sorted(met))
else:
    end = time.monotonic() + 150  # a name server may remember for 30 s that there was no such name
    while True:
        try:
            socket.create_connection((host, port), 5).sendall(b'%d' % rank)
            break
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(4)
            time.sleep(0.2)
    print('called')
"""


def resolves_names(world: ClusterWorld) -> bool:
    """Whether pods can look up names at all: a cluster can do without, several machines cannot."""
    if world.fake is not None:
        return True
    code = "import socket; socket.gethostbyname('kubernetes.default.svc')"
    launcher, order = world.launcher(world.settings(code, retries=0)), new_order()
    launcher.launch(order)
    ended(world, launcher, order.handle)
    job = world.cluster.get(Kind.JOBS, Worker.of(order.handle).name)
    launcher.forget(order.job_id)
    return job is not None and bool(job["status"].get("succeeded"))


def test_several_machines_find_each_other_by_the_first_ones_name(world: ClusterWorld) -> None:
    if not resolves_names(world):
        pytest.skip("this cluster resolves no names (is there a DNS add-on?)")
    pool = SMALL.model_copy(update={"max_nodes": 3})
    settings = world.settings(MEETING, pools=(pool,), rendezvous_port=free_port())
    launcher, order = world.launcher(settings, nodes=3), new_order()
    launcher.launch(order)
    ended(world, launcher, order.handle)
    job = world.cluster.get(Kind.JOBS, Worker.of(order.handle).name)
    assert job is not None
    assert job["status"]["succeeded"] == 3
    logs = [
        world.core.read_namespaced_pod_log(pod.metadata.name, world.namespace).strip()
        for pod in world.pods(**{"taciturn.dev/job": order.job_id})
    ]
    assert sorted(logs)[:2] == ["called", "called"]
    assert sorted(logs)[2].startswith("met")
    launcher.forget(order.job_id)
    world.until(lambda: not left(world, launcher))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_owners_secret_is_named_and_not_read(world: ClusterWorld) -> None:
    name = f"owner-{secrets.token_hex(4)}"
    world.core.create_namespaced_secret(
        world.namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name=name), string_data={"PGPASSWORD": "s3cret"}
        ),
    )
    settings = world.settings("import os; print(len(os.environ['PGPASSWORD']))")
    need = Need(Machine(settings.pools[0]), data_secret=name)
    launcher = KubernetesLauncher(world.cluster, settings, lambda job_id: need)
    order = new_order()
    launcher.launch(order)
    ended(world, launcher, order.handle)
    assert log_of(world, order).strip() == "6"
    launcher.forget(order.job_id)
    world.until(lambda: not left(world, launcher))
    assert world.core.read_namespaced_secret(name, world.namespace).metadata.name == name


def test_a_policy_keeps_the_worker_to_what_was_declared(world: ClusterWorld) -> None:
    settings = world.settings(ENDLESS, egress=(EgressRule(cidr="10.1.0.0/16", ports=(443,)),))
    launcher, order = world.launcher(settings), new_order()
    launcher.launch(order)
    policy = world.cluster.get(Kind.POLICIES, Worker.of(order.handle).name)
    assert policy is not None
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert not spec.get("ingress")
    assert {"ipBlock": {"cidr": "10.1.0.0/16"}} in [rule["to"][0] for rule in spec["egress"]]
    launcher.stop(order.handle, 0)


def test_orphans_are_reaped_and_others_left(world: ClusterWorld) -> None:
    launcher, lost, known = world.launcher(world.settings(ENDLESS)), new_order(), new_order()
    for order in (lost, known):
        launcher.launch(order)
    instance = launcher.settings.instance
    owner = manifests.owner_of("gone", "00000000-0000-4000-8000-000000000000")
    alone = Worker(new_order().job_id, 1)
    service = manifests.service(alone, owner, launcher.settings)
    service.metadata.owner_references = None
    world.cluster.create(Kind.SERVICES, service)
    reaper = GarbageCollector(
        world.cluster, instance, lambda job_id: job_id == known.job_id, young_s=0
    )
    reaped = reaper.reap(world.now() + timedelta(minutes=1))  # the server's clock may be ahead
    assert f"jobs/{Worker.of(lost.handle).name}" in reaped
    assert f"services/{alone.name}" in reaped
    world.until(lambda: left(world, launcher).get("jobs") == [Worker.of(known.handle).name])
    assert launcher.alive() == (known.handle,)
    world.until(lambda: "services" not in left(world, launcher))
    launcher.stop(known.handle, 0)


def test_young_objects_are_nobodys_orphans(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    reaper = GarbageCollector(
        world.cluster, launcher.settings.instance, lambda job_id: False, young_s=3600
    )
    assert reaper.reap(world.now()) == []
    launcher.stop(order.handle, 0)


def test_an_overloaded_server_is_asked_again(world: ClusterWorld, fake: FakeCluster) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    fake.server.failures.extend([503, 429, 500])
    launcher.launch(order)
    ended(world, launcher, order.handle)


def test_what_is_not_allowed_is_said(world: ClusterWorld, fake: FakeCluster) -> None:
    launcher = world.launcher(world.settings())
    fake.api.forbidden.add(("create", "jobs"))
    try:
        with pytest.raises(ClusterError, match=r"403 Forbidden.*cannot create"):
            launcher.launch(new_order())
    finally:
        fake.api.forbidden.clear()


def test_somebody_elses_job_is_not_touched(world: ClusterWorld) -> None:
    launcher, order = world.launcher(world.settings()), new_order()
    name = Worker.of(order.handle).name
    container = client.V1Container(name="worker", image="x")
    pod = client.V1PodTemplateSpec(
        spec=client.V1PodSpec(restart_policy="Never", containers=[container])
    )
    world.batch.create_namespaced_job(
        world.namespace,
        client.V1Job(
            metadata=client.V1ObjectMeta(name=name),
            spec=client.V1JobSpec(template=pod, suspend=True),
        ),
    )
    with pytest.raises(LaunchError, match="belongs to no worker"):
        launcher.launch(order)


def test_whether_a_worker_waits_for_its_machine(world: ClusterWorld) -> None:
    nowhere = SMALL.model_copy(update={"node_selector": {"taciturn.dev/no": "such"}})
    launcher, order = world.launcher(world.settings(ENDLESS, pools=(nowhere,))), new_order()
    launcher.launch(order)
    assert launcher.status(order.handle) is WorkerState.RUNNING
    assert launcher.waiting(order.handle)
    launcher.stop(order.handle, 0)
    launcher, order = world.launcher(world.settings(ENDLESS)), new_order()
    launcher.launch(order)
    world.until(lambda: not launcher.waiting(order.handle))
    assert launcher.status(order.handle) is WorkerState.RUNNING
    launcher.stop(order.handle, 0)
    world.until(lambda: launcher.status(order.handle) is WorkerState.ABSENT)
    assert not launcher.waiting(order.handle)


def test_a_gateway_makes_itself_one_signing_key(world: ClusterWorld) -> None:
    """At the first launch, whoever launches; it is nobody's, so that it stays."""
    settings = world.settings(own_signing_key=True)
    name, found = f"{settings.instance}-signing", []
    for launcher in (world.launcher(settings), world.launcher(settings)):
        order = new_order()
        launcher.launch(order)
        secret = world.core.read_namespaced_secret(name, world.namespace)
        assert not secret.metadata.owner_references
        found.append(secret.data)
        ended(world, launcher, order.handle)
        launcher.forget(order.job_id)
    assert found[0] == found[1]
    assert set(found[0]) == {"key.pem", "trust.json"}
    world.until(lambda: not left(world, world.launcher(settings)))
    assert world.core.read_namespaced_secret(name, world.namespace).data == found[0]
    world.core.delete_namespaced_secret(name, world.namespace)
    named = world.settings(own_signing_key=True, signing_secret="theirs")
    assert named.signing == "theirs"
    assert world.settings().signing == ""
