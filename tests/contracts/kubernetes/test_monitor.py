"""What people are told of a worker, on a cluster that makes machines; with everything that can go
wrong there. Most of it needs the fake cluster, whose autoscaler fails as it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fake_kubernetes.autoscaler import Group
from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import ClusterWorld, EventRecorder, new_order
from taciturn.server.launchers.base import Order, WorkerState
from taciturn.server.launchers.kubernetes.client import Kind
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.monitor import Monitor
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool

Start = Callable[..., tuple[Monitor, EventRecorder]]

WORK = "import time; time.sleep(0.3)"
ENDLESS = "import time; time.sleep(600)"


def gpu_pool(name: str, **more: Any) -> Pool:
    return Pool(
        name=name, gpus=1, gpu_memory="24Gi", cpu="2", memory="4Gi", ephemeral_storage="10Gi",
        node_selector={"pool": name}, price_per_hour=3.6, **more,
    )  # fmt: skip


class Case:
    """A launcher on a pool of its own, and what is told."""

    def __init__(
        self, world: ClusterWorld, fake: FakeCluster, monitor: Start, group: Group,
        code: str = WORK, pool: dict[str, Any] | None = None, nodes: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        self.world, self.group = world, fake.add_group(group)
        pools = (gpu_pool(group.name, **(pool or {})),)
        self.settings: KubernetesSettings = world.settings(code, pools=pools, **settings)
        self.launcher: KubernetesLauncher = world.launcher(self.settings, gpus=1, nodes=nodes)
        self.monitor, self.recorder = monitor(self.settings)
        self.order: Order = new_order()

    def run(self) -> None:
        self.launcher.launch(self.order)

    def until(self, code: str, words: str = "") -> str:
        """Wait until something is told; returns the text."""
        self.world.until(
            lambda: words in self.recorder.text(code) and code in self.recorder.codes()
        )
        return self.recorder.text(code)

    def stop(self) -> None:
        self.launcher.stop(self.order.handle, 0)


@pytest.fixture
def case(world: ClusterWorld, fake: FakeCluster, monitor: Start) -> Iterator[Callable[..., Case]]:
    made: list[Case] = []

    def make(group: Group, **more: Any) -> Case:
        made.append(Case(world, fake, monitor, group, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()
        fake.autoscaler.groups.remove(each.group)


def test_a_worker_on_any_cluster(world: ClusterWorld, monitor: Start) -> None:
    settings = world.settings("import time; time.sleep(3)" if not world.fake else WORK)
    launcher, order = world.launcher(settings), new_order()
    _, recorder = monitor(settings)
    launcher.launch(order)
    world.until(lambda: "node.kept" in recorder.codes())
    stages = [code for code in recorder.codes() if code in ("running", "releasing", "node.kept")]
    assert stages == ["running", "releasing", "node.kept"]
    assert "at most" not in recorder.text("node.kept")
    assert {handle for handle, _ in recorder.events} == {order.handle}
    launcher.forget(order.job_id)


@pytest.mark.parametrize(
    ("missing", "code", "words"),
    [
        ({"image": "registry.invalid/no-such:1"}, "pulling.failed", "Check the image's name"),
        ({"signing_secret": "no-such-secret"}, "starting.failed", "no-such-secret"),
    ],
    ids=["image", "secret"],
)
def test_an_image_or_a_secret_that_is_not_there(
    world: ClusterWorld, monitor: Start, missing: dict[str, Any], code: str, words: str
) -> None:
    settings = world.settings(**missing)
    launcher, order = world.launcher(settings), new_order()
    _, recorder = monitor(settings)
    launcher.launch(order)
    world.until(lambda: code in recorder.codes())
    assert words in recorder.text(code)
    launcher.stop(order.handle, 0)


def test_a_machine_comes_for_the_job_and_goes_after_it(case: Any) -> None:
    job = case(Group("whole", create_s=20, idle_s=40))
    job.run()
    released = job.until("node.released")
    # Each once: no word of an autoscaler comes back when its machine is there.
    codes = [code for code in job.recorder.codes() if code not in ("provisioning", "ending")]
    assert codes == [
        "provisioning.scaling", "provisioning.node", "provisioning.gpu", "pulling", "running",
        "releasing", "node.released",
    ]  # fmt: skip
    assert "autoscaler says" in job.recorder.text("provisioning.scaling")
    assert released.startswith("machine whole-1 is gone: ")
    # Made, ready after 10 s, GPU after 15 s, then the work and 40 s without: a minute at least.
    seconds = int(released.split(": ")[1].split()[0])
    assert 60 <= seconds <= 600
    assert f"{seconds / 1000:.2f} USD" in released  # 3.60 an hour
    (use,) = [event.use for _, event in job.recorder.events if event.use is not None]
    assert (use.node, use.ended, use.node_seconds) == ("whole-1", "released", seconds)
    assert (use.at_most, use.cost, use.currency) == (False, seconds / 1000, "USD")
    assert job.launcher.status(job.order.handle) is WorkerState.ENDED
    mine = f"taciturn.dev/job={job.order.job_id}"
    job.world.until(lambda: not job.world.cluster.list(Kind.CONFIG_MAPS, labels=mine)[0])


def test_no_quota(case: Any) -> None:
    job = case(Group("quota", quota=0))
    job.run()
    text = job.until("provisioning.refused")
    assert "quota of quota exceeded" in text
    assert "Raise the cloud's quota" in text


def test_the_group_is_full(case: Any) -> None:
    job = case(Group("full", largest=0))
    job.run()
    assert "max node group size reached" in job.until("provisioning.refused")


def test_quota_comes_later(case: Any) -> None:
    job = case(Group("later", quota=0))
    job.run()
    job.until("provisioning.refused")
    job.group.quota = 1
    job.until("running")


def test_a_node_that_is_never_ready_and_all_is_given_up(case: Any) -> None:
    job = case(Group("dead", never_ready=True), start_s=300)
    job.run()
    text = job.until("provisioning.node", "Look at the node's events")
    assert "container runtime network not ready" in text
    assert "Ask for fewer or other GPUs" in job.until("provisioning.given_up")
    # The deadline was the means of it: raising that would help nobody.
    assert "not all machines came within 300 s" in job.until("releasing.failed")
    codes = job.recorder.codes()
    assert codes[codes.index("provisioning.given_up") :] == [
        "provisioning.given_up", "releasing.failed"
    ]  # fmt: skip
    assert job.launcher.status(job.order.handle) is WorkerState.GIVEN_UP


def test_all_machines_or_none(case: Any, world: ClusterWorld) -> None:
    """One of two comes, and costs money while it waits: after a while it goes, too."""
    group = Group("half", largest=1, create_s=5, ready_s=2, driver_s=1, idle_s=20)
    job = case(group, code=ENDLESS, pool={"max_nodes": 2}, nodes=2, start_s=120)
    job.run()
    mine = {"taciturn.dev/job": job.order.job_id}
    world.until(lambda: "Running" in [pod.status.phase for pod in world.pods(**mine)])
    assert "not all machines came within 120 s" in job.until("provisioning.given_up")
    job.until("node.released")
    assert job.launcher.status(job.order.handle) is WorkerState.GIVEN_UP
    assert job.recorder.codes().count("provisioning.given_up") == 1
    assert not [pod for pod in world.pods(**mine) if pod.status.phase == "Running"]


def test_a_gpu_that_is_not_offered(case: Any) -> None:
    job = case(Group("driverless", no_gpus=True))
    job.run()
    assert "install the GPU driver" in job.until("provisioning.gpu.missing")


def test_preempted_twice(case: Any) -> None:
    quick = {"create_s": 5, "ready_s": 2, "driver_s": 1, "idle_s": 9}
    group = Group("spot", largest=9, preempt_s=[20, 20], **quick)
    job = case(group, code="import time; time.sleep(1.2)")
    job.run()
    job.until("node.released", "spot-3")
    gone = [event.text for _, event in job.recorder.events if event.code == "node.released"]
    assert [text.split()[1] for text in gone] == ["spot-1", "spot-2", "spot-3"]
    assert "the machine was taken away; another worker begins anew" in job.recorder.text(
        "interrupted"
    )
    assert job.launcher.status(job.order.handle) is WorkerState.ENDED
    found = job.world.cluster.get(Kind.JOBS, Worker.of(job.order.handle).name)
    assert "failed" not in found["status"]


def test_a_node_that_vanishes(case: Any, fake: FakeCluster) -> None:
    job = case(Group("lost", create_s=5, ready_s=2, driver_s=1), code=ENDLESS)
    job.run()
    job.until("running")
    fake.lose("lost-1")
    job.until("interrupted", "machine lost-1 is gone")  # while its pod is said to run
    job.until("interrupted", "taken away")
    job.until("node.released", "lost-1")
    job.world.until(lambda: job.recorder.codes()[-1] == "running")


def test_a_worker_whose_policy_was_deleted_before_it_started_is_begun_anew(
    world: ClusterWorld, fake: FakeCluster, monitor: Start
) -> None:
    """It does not start without it; nor does its job wait for ever."""
    settings = world.settings(ENDLESS)
    launcher, order = world.launcher(settings), new_order()
    _, recorder = monitor(settings)
    fake.kubelet.pull_s = 20.0
    try:
        launcher.launch(order)
        name = Worker.of(order.handle).name
        world.cluster.delete(Kind.POLICIES, name)
        world.until(lambda: "starting.failed" in recorder.codes())
        world.until(lambda: launcher.status(order.handle) is WorkerState.ABSENT)
    finally:
        fake.kubelet.pull_s = 1.0
    assert "running" not in recorder.codes()
    launcher.launch(order)
    world.until(lambda: recorder.codes()[-1] == "running")
    launcher.stop(order.handle, 0)


def test_a_node_whose_agent_is_dead(case: Any, world: ClusterWorld, fake: FakeCluster) -> None:
    """Its pod is said to run, then to be ending, for as long as the node is there."""
    job = case(Group("dead-agent", largest=2, create_s=5, ready_s=2, driver_s=1), code=ENDLESS)
    job.run()
    job.until("running")
    fake.die("dead-agent-1")
    job.until("running.unreachable", "machine dead-agent-1 has not reported since")
    job.until("interrupted.unreachable", "kubectl delete node dead-agent-1")
    assert job.launcher.status(job.order.handle) is WorkerState.RUNNING
    job.launcher.stop(job.order.handle, 0)
    world.until(lambda: job.recorder.codes()[-1] == "interrupted.unreachable")
    assert "is released" not in "".join(event.text for _, event in job.recorder.events)
    assert job.launcher.status(job.order.handle) is WorkerState.RUNNING
    fake.lose("dead-agent-1")
    job.until("node.released", "dead-agent-1")
    world.until(lambda: job.launcher.status(job.order.handle) is WorkerState.ABSENT)


def test_a_container_that_has_ended_is_not_being_pulled(case: Any, fake: FakeCluster) -> None:
    fake.kubelet.lag_s = 20.0
    try:
        job = case(Group("lag", create_s=5, ready_s=2, driver_s=1, idle_s=20))
        job.run()
        assert "the worker is done" in job.until("ending")
        job.until("releasing")
        codes = job.recorder.codes()
        assert codes[codes.index("running") + 1] == "ending"
    finally:
        fake.kubelet.lag_s = 0.0


@pytest.mark.parametrize(
    ("stays", "words"),
    [("finalizer", "held by karpenter.sh/termination"), ("pinned", "scale-down-disabled=true")],
)
def test_a_node_that_refuses_to_go(case: Any, fake: FakeCluster, stays: str, words: str) -> None:
    group = Group(f"stays-{stays}", stays=stays, create_s=5, ready_s=2, driver_s=1, idle_s=20)
    job = case(group, pool={"release_s": 60})
    job.run()
    assert words in job.until("node.stays")
    node = fake.store.find("nodes", None, f"{group.name}-1")
    assert node is not None
    fake.store.remove("nodes", node)
    job.until("node.released")
    assert job.recorder.codes().count("node.stays") == 1


def test_a_pod_that_keeps_a_node(case: Any, world: ClusterWorld, fake: FakeCluster) -> None:
    job = case(
        Group("shared", create_s=5, ready_s=2, driver_s=1, idle_s=20), pool={"release_s": 60}
    )
    job.run()
    job.until("running")
    spec = {
        "nodeName": "shared-1", "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "agent", "image": "x", "resources": {},
                        "command": ["python", "-c", ENDLESS]}],
    }  # fmt: skip
    fake.store.add("pods", {
        "kind": "Pod", "apiVersion": "v1", "spec": spec, "status": {"phase": "Pending"},
        "metadata": {"name": "agent", "namespace": "kube-system"},
    })  # fmt: skip
    assert "pods keep it: kube-system/agent" in job.until("node.stays")
    world.core.delete_namespaced_pod("agent", "kube-system")
    job.until("node.released")


def test_out_of_memory(case: Any, world: ClusterWorld, fake: FakeCluster) -> None:
    job = case(Group("small", create_s=5, ready_s=2, driver_s=1), code=ENDLESS, retries=0)
    job.run()
    job.until("running")
    (pod,) = world.pods(**{"taciturn.dev/job": job.order.job_id})
    fake.out_of_memory(pod.metadata.name, world.namespace)
    assert "ran out of the machine's memory" in job.until("releasing.failed")


def test_a_gateway_that_restarts_goes_on_seeing_nodes_off(
    case: Any, world: ClusterWorld, fake: FakeCluster, monitor: Start
) -> None:
    job = case(Group("restart", create_s=5, ready_s=2, driver_s=1, idle_s=60))
    job.run()
    job.until("running")
    job.monitor.stop()
    world.until(lambda: job.launcher.status(job.order.handle) is WorkerState.ENDED)
    job.launcher.forget(job.order.job_id)
    world.until(lambda: not job.launcher.leftover_jobs())
    _, recorder = monitor(job.settings)
    world.until(lambda: "node.released" in recorder.codes())
    assert [handle for handle, _ in recorder.events] == [job.order.handle] * len(recorder.events)


def test_what_stays_is_billed_at_most_where_nobody_saw_the_end(
    case: Any, world: ClusterWorld, monitor: Start
) -> None:
    job = case(
        Group("stands", create_s=5, ready_s=2, driver_s=1, idle_s=3600), pool={"scales": False}
    )
    job.run()
    job.until("running")
    job.monitor.stop()
    world.until(lambda: job.launcher.status(job.order.handle) is WorkerState.ENDED)
    _, recorder = monitor(job.settings)
    world.until(lambda: "node.kept" in recorder.codes())
    assert "free again: at most" in recorder.text("node.kept")
    (use,) = [event.use for _, event in recorder.events if event.use is not None]
    assert (use.ended, use.at_most) == ("kept", True)


def test_an_api_server_that_restarts(case: Any, fake: FakeCluster) -> None:
    job = case(Group("cut", create_s=20, idle_s=20))
    job.run()
    for code in ("provisioning.scaling", "running"):
        job.until(code)
        fake.restart_api()
    job.until("node.released")


def test_a_cancelled_worker_and_its_machine(case: Any) -> None:
    job = case(Group("cancel", create_s=5, ready_s=2, driver_s=1, idle_s=20), code=ENDLESS)
    job.run()
    job.until("running")
    job.launcher.stop(job.order.handle, 1)
    job.until("node.released")
    assert job.launcher.leftover_jobs() == ()


def test_one_machine_serves_two_jobs_in_a_row(case: Any, world: ClusterWorld) -> None:
    job = case(Group("again", largest=1, create_s=5, ready_s=2, driver_s=1, idle_s=120))
    job.run()
    job.until("releasing")
    second = new_order()
    job.launcher.launch(second)
    world.until(lambda: "node.released" in job.recorder.codes())
    first = [event.code for handle, event in job.recorder.events if handle == job.order.handle]
    assert "node.reused" in first
    last = [event for handle, event in job.recorder.events if handle == second.handle]
    assert last[-1].code == "node.released"


def test_nodes_that_may_not_be_seen(
    world: ClusterWorld, fake: FakeCluster, monitor: Start, case: Any
) -> None:
    fake.api.forbidden |= {("list", "nodes"), ("watch", "nodes")}
    try:
        settings = world.settings(WORK)
        launcher, order = world.launcher(settings), new_order()
        _, recorder = monitor(settings)
        launcher.launch(order)
        world.until(lambda: "node.unseen" in recorder.codes())
        assert "allow the gateway to get, list and watch nodes" in recorder.text("node.unseen")
    finally:
        fake.api.forbidden.clear()
