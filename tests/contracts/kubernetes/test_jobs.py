"""Jobs and their pods: how they end, and when they say so."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest
from kubernetes import client

from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import IMAGE, ClusterWorld

ENDLESS = "import time; time.sleep(600)"
IGNORE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
DEAF = f"{IGNORE}; print('deaf', flush=True); time.sleep(6000)"


def make(world: ClusterWorld, code: str = "pass", **spec: Any) -> str:
    """A Job that runs a line of Python; returns its name."""
    name = f"j-{secrets.token_hex(4)}"
    container = client.V1Container(
        name="worker", image=IMAGE, image_pull_policy="IfNotPresent", command=["python", "-c", code]
    )
    grace_s = spec.pop("grace_s", 5)
    pod = client.V1PodSpec(
        restart_policy="Never", containers=[container], termination_grace_period_seconds=grace_s
    )
    world.batch.create_namespaced_job(
        world.namespace,
        client.V1Job(
            metadata=client.V1ObjectMeta(name=name),
            spec=client.V1JobSpec(template=client.V1PodTemplateSpec(spec=pod), **spec),
        ),
    )
    return name


def read(world: ClusterWorld, name: str) -> client.V1Job:
    return world.batch.read_namespaced_job(name, world.namespace)


def condition(world: ClusterWorld, name: str, kind: str) -> Any:
    found = read(world, name).status.conditions or ()
    return next((each for each in found if (each.type, each.status) == (kind, "True")), None)


def pods_of(world: ClusterWorld, name: str) -> list[client.V1Pod]:
    return world.pods(job_name=name)


def running(world: ClusterWorld, name: str) -> list[client.V1Pod]:
    pods = world.pods(job_name=name)
    return [pod for pod in pods if pod.status.phase == "Running"]


def test_a_job_completes_and_its_log_can_be_read(world: ClusterWorld) -> None:
    name = make(world, "print('done')")
    done = world.until(lambda: condition(world, name, "Complete"))
    job = read(world, name)
    assert (job.status.succeeded, job.status.failed) == (1, None)
    assert condition(world, name, "SuccessCriteriaMet").reason == done.reason
    assert job.status.start_time <= job.status.completion_time
    (pod,) = world.pods(job_name=name)
    assert pod.metadata.name.startswith(f"{name}-")
    assert pod.metadata.owner_references[0].uid == job.metadata.uid
    log = world.core.read_namespaced_pod_log(pod.metadata.name, world.namespace)
    assert log.strip() == "done"


def test_a_failing_pod_is_replaced_and_then_the_job_fails(world: ClusterWorld) -> None:
    name = make(world, "raise SystemExit(9)", backoff_limit=1)
    failed = world.until(lambda: condition(world, name, "Failed"))
    assert failed.reason == "BackoffLimitExceeded"
    assert read(world, name).status.failed == 2
    assert condition(world, name, "FailureTarget")
    ended = [pod.status.container_statuses[0].state.terminated for pod in world.pods(job_name=name)]
    assert [each.exit_code for each in ended] == [9, 9]


def policy(*rules: client.V1PodFailurePolicyRule) -> client.V1PodFailurePolicy:
    return client.V1PodFailurePolicy(rules=list(rules))


def on_code(action: str, code: int) -> client.V1PodFailurePolicyRule:
    codes = client.V1PodFailurePolicyOnExitCodesRequirement(
        container_name="worker", operator="In", values=[code]
    )
    return client.V1PodFailurePolicyRule(action=action, on_exit_codes=codes)


def test_an_exit_code_fails_the_job_at_once(world: ClusterWorld) -> None:
    rules = policy(on_code("FailJob", 77))
    name = make(world, "raise SystemExit(77)", backoff_limit=5, pod_failure_policy=rules)
    failed = world.until(lambda: condition(world, name, "Failed"))
    assert failed.reason == "PodFailurePolicy"
    assert "exit code 77" in failed.message
    assert len(world.pods(job_name=name)) == 1


def test_an_ignored_failure_does_not_count(world: ClusterWorld, fake: FakeCluster) -> None:
    taken = client.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
    rule = client.V1PodFailurePolicyRule(action="Ignore", on_pod_conditions=[taken])
    name = make(world, ENDLESS, backoff_limit=0, pod_failure_policy=policy(rule))
    (pod,) = world.until(lambda: running(world, name))
    found = fake.store.find("pods", world.namespace, pod.metadata.name)
    assert found is not None
    fake.store.edit("pods", found, fake._disrupted)
    (other,) = world.until(lambda: running(world, name))
    assert other.metadata.name != pod.metadata.name
    assert not read(world, name).status.failed


def test_the_deadline_is_said_when_the_pod_has_ended(world: ClusterWorld) -> None:
    limit_s = 30 if world.fake else 10  # time to become deaf
    name = make(world, DEAF, active_deadline_seconds=limit_s, grace_s=4)
    target = world.until(lambda: condition(world, name, "FailureTarget"))
    assert target.reason == "DeadlineExceeded"
    failed = world.until(lambda: condition(world, name, "Failed"))
    assert failed.reason == "DeadlineExceeded"
    assert not running(world, name)
    # The pod would not listen: its grace lies between the decision and its being said.
    assert (failed.last_transition_time - target.last_transition_time).total_seconds() >= 3


def test_a_suspended_job_has_no_pods(world: ClusterWorld) -> None:
    name = make(world, ENDLESS, suspend=True)
    world.until(lambda: condition(world, name, "Suspended"))
    assert not world.pods(job_name=name)
    assert read(world, name).status.start_time is None
    suspend(world, name, False)
    world.until(lambda: running(world, name))
    suspend(world, name, True)
    world.until(lambda: condition(world, name, "Suspended") and not world.pods(job_name=name))
    assert not read(world, name).status.failed


def suspend(world: ClusterWorld, name: str, value: bool) -> None:
    world.batch.patch_namespaced_job(
        name, world.namespace, {"spec": {"suspend": value}},
        _content_type="application/merge-patch+json",
    )  # fmt: skip


def test_an_indexed_job_completes_each_index(world: ClusterWorld) -> None:
    code = "import os, socket; print(os.environ['JOB_COMPLETION_INDEX'], socket.gethostname())"
    name = make(world, code, completions=3, parallelism=2, completion_mode="Indexed")
    world.until(lambda: condition(world, name, "Complete"))
    job = read(world, name)
    assert job.status.succeeded == 3
    assert job.status.completed_indexes in ("0,1,2", "0-2")
    hosts = {pod.spec.hostname for pod in world.pods(job_name=name)}
    assert hosts == {f"{name}-{index}" for index in range(3)}


def test_a_finished_job_goes_after_its_time(world: ClusterWorld) -> None:
    name = make(world, ttl_seconds_after_finished=1)
    world.until(lambda: not world.batch.list_namespaced_job(
        world.namespace, field_selector=f"metadata.name={name}").items)  # fmt: skip
    world.until(lambda: not world.pods(job_name=name))


@pytest.mark.parametrize("propagation", ["Foreground", "Background", None])
def test_deletion(world: ClusterWorld, propagation: str | None) -> None:
    """Without a policy, pods of a Job stay: what every first script that deletes Jobs leaks."""
    name = make(world, ENDLESS, grace_s=1)
    (pod,) = world.until(lambda: running(world, name))
    options = {"propagation_policy": propagation} if propagation else {}
    world.batch.delete_namespaced_job(name, world.namespace, **options)
    if propagation == "Foreground":
        left = world.batch.list_namespaced_job(
            world.namespace, field_selector=f"metadata.name={name}"
        ).items
        assert all(each.metadata.deletion_timestamp for each in left)
    if propagation is None:
        world.until(
            lambda: not any(each.metadata.owner_references for each in pods_of(world, name))
        )
        time.sleep(10 * world.reading())
        (kept,) = pods_of(world, name)
        assert kept.status.phase == "Running"
        world.core.delete_namespaced_pod(pod.metadata.name, world.namespace)
    world.until(lambda: not world.pods(job_name=name))


def test_a_pod_is_told_and_then_killed(world: ClusterWorld) -> None:
    name = make(world, DEAF, backoff_limit=0, grace_s=6000)
    (pod,) = world.until(lambda: running(world, name))
    world.until(lambda: "deaf" in world.log(pod.metadata.name))
    world.core.delete_namespaced_pod(pod.metadata.name, world.namespace, grace_period_seconds=2)
    # Another one may be there by then: a Job replaces a pod that is told to end.
    own = pod.metadata.uid
    world.until(lambda: own not in [each.metadata.uid for each in running(world, name)])


def test_events_say_what_happened(world: ClusterWorld) -> None:
    name = make(world)
    world.until(lambda: condition(world, name, "Complete"))
    uid = read(world, name).metadata.uid

    def reasons() -> set[str]:
        chosen = f"involvedObject.uid={uid}"
        found = world.core.list_namespaced_event(world.namespace, field_selector=chosen).items
        return {each.reason for each in found}

    world.until(lambda: {"SuccessfulCreate", "Completed"} <= reasons())


def test_a_pod_that_fits_nowhere_says_so(world: ClusterWorld) -> None:
    container = client.V1Container(name="worker", image=IMAGE)
    pod = client.V1Pod(
        metadata=client.V1ObjectMeta(generate_name="nowhere-"),
        spec=client.V1PodSpec(containers=[container], node_selector={"taciturn.dev/no": "such"}),
    )
    name = world.core.create_namespaced_pod(world.namespace, pod).metadata.name

    def unschedulable() -> Any:
        found = world.core.read_namespaced_pod(name, world.namespace).status
        return next((each for each in found.conditions or () if each.status == "False"), None)

    said = world.until(unschedulable)
    assert (said.type, said.reason) == ("PodScheduled", "Unschedulable")
    assert "nodes are available" in said.message
    world.core.delete_namespaced_pod(name, world.namespace)
