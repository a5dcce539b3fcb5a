"""The objects of a worker: what they ask of the cluster, and that every version takes them."""

from __future__ import annotations

from functools import cache
from typing import Any

import kubernetes_validate
import pytest
from kubernetes.client import ApiClient

from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes import manifests
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.launchers.kubernetes.settings import EgressRule, KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.sizing import Machine
from taciturn.wire.exits import FINAL

GPU = Pool(
    name="a100", gpus=8, gpu_memory="80Gi", cpu="90", memory="900Gi", ephemeral_storage="1Ti",
    node_selector={"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}, max_nodes=4,
)  # fmt: skip
CPU = Pool(name="cpu", whole_node=False)
SETTINGS = KubernetesSettings(
    pools=(CPU, GPU), service_account="worker", data_secret="owner", signing_secret="signing",
    image_pull_secrets=("registry",), egress=(EgressRule(cidr="10.0.0.0/8", ports=(443, 5432)),),
    labels={"cost-centre": "research"}, queue="jobs", checkpoint_url="s3://bucket/checkpoints",
    checkpoint_secret="vault",
)  # fmt: skip
WORKER = Worker("job_0123456789abcdef", 2)
VERSIONS = ("1.31", "1.36")


@cache
def rendered(nodes: int, gpus: int) -> dict[str, Any]:
    """All objects, as they are sent."""
    machine = Machine(GPU if gpus else CPU, nodes, gpus)
    owner = manifests.owner_of(WORKER.name, "00000000-0000-4000-8000-000000000000")
    made = (
        manifests.job(WORKER, machine, SETTINGS, ("owner", "vault")),
        manifests.secret(WORKER, owner, {"TACITURN_TOKEN": "x"}, SETTINGS.instance),
        manifests.service(WORKER, owner, SETTINGS),
        manifests.network_policy(WORKER, owner, nodes, SETTINGS),
    )
    return {each.kind: ApiClient().sanitize_for_serialization(each) for each in made}


def pod_of(nodes: int, gpus: int) -> dict[str, Any]:
    found: dict[str, Any] = rendered(nodes, gpus)["Job"]["spec"]["template"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(1, 0), (4, 8)])
def test_every_version_takes_every_object(version: str, shape: tuple[int, int]) -> None:
    for each in rendered(*shape).values():
        kubernetes_validate.validate(each, version, strict=True)


def test_a_pod_asks_for_exactly_one_machine_that_goes_after_it() -> None:
    pod = pod_of(1, 2)
    container = pod["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert set(container["resources"]["requests"]) == {"cpu", "memory", "ephemeral-storage"}
    assert pod["spec"]["nodeSelector"] == GPU.node_selector
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"][
        "tolerations"
    ]
    (rule,) = pod["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_a_cpu_pod_asks_for_no_gpu() -> None:
    pod = pod_of(1, 0)
    assert "nvidia.com/gpu" not in str(pod)
    assert "affinity" not in pod["spec"]


def test_ends_that_are_final_and_ends_that_are_not() -> None:
    spec = rendered(1, 1)["Job"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimit"] == 3
    final, taken = spec["podFailurePolicy"]["rules"]
    assert final["action"] == "FailJob"
    assert final["onExitCodes"]["values"] == sorted(map(int, FINAL))
    assert (taken["action"], taken["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert spec["activeDeadlineSeconds"] == 86_400
    assert spec["ttlSecondsAfterFinished"] == 600
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 120


def test_the_pod_has_no_rights() -> None:
    spec = pod_of(1, 1)["spec"]
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert mounts == {"/workspace", "/tmp", "/dev/shm", "/etc/taciturn/signing"}


def test_secrets_are_named_and_never_written_into_the_pod() -> None:
    pod = pod_of(1, 1)
    sources = pod["spec"]["containers"][0]["envFrom"]
    assert [each["secretRef"]["name"] for each in sources] == ["owner", "vault", WORKER.name]
    secret = rendered(1, 1)["Secret"]
    assert secret["immutable"] is True
    assert secret["metadata"]["ownerReferences"][0]["kind"] == "Job"
    assert "TACITURN_TOKEN" not in str(pod)


def variables(pod: dict[str, Any]) -> dict[str, str]:
    found = pod["spec"]["containers"][0]["env"]
    return {each["name"]: each.get("value", "") for each in found}


def test_the_key_of_checkpoints_comes_from_its_owners_secret_alone() -> None:
    found = variables(pod_of(1, 1))
    assert found["TACITURN_CHECKPOINT_URL"] == "s3://bucket/checkpoints"
    assert "TACITURN_CHECKPOINT_KEY" not in found
    # A job that has nothing there is told neither.
    made = manifests.job(WORKER, Machine(GPU, 1, 1), SETTINGS, ("owner",))
    other = ApiClient().sanitize_for_serialization(made)["spec"]["template"]
    assert "TACITURN_CHECKPOINT_URL" not in variables(other)
    assert "vault" not in str(other["spec"]["containers"][0]["envFrom"])


def test_processes_are_told_how_long_one_may_be_silent() -> None:
    found = variables(pod_of(4, 8))
    assert found["TACITURN_PEER_LIMIT_S"] == "120"
    # Less than the pod's own grace, of which something is left for the copy in the store.
    assert found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "110"
    assert "TACITURN_PEER_LIMIT_S" not in variables(pod_of(1, 1))


def test_several_machines_meet_at_the_first() -> None:
    job = rendered(4, 8)["Job"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 4)
    assert job["spec"]["parallelism"] == 4
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == rendered(4, 8)["Service"]["metadata"]["name"]
    command = pod["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "taciturn.worker.torchrun"]
    # Longer than all machines may take to come: the first one waits for the last.
    (limit,) = [word for word in command if word.startswith("--rdzv-conf=timeout=")]
    assert int(limit.rpartition("=")[2]) >= SETTINGS.start_s + 600
    assert f"--master-addr={WORKER.name}-0.{WORKER.name}" in command
    assert {"--nnodes=4", "--nproc-per-node=8", "--node-rank=$(TACITURN_NODE_RANK)"} <= set(command)
    service = rendered(4, 8)["Service"]["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_several_gpus_of_one_machine_need_no_meeting_point() -> None:
    command = pod_of(1, 8)["spec"]["containers"][0]["command"]
    assert "--standalone" in command
    assert not any(word.startswith("--master") for word in command)


def test_workers_reach_what_was_declared_and_nothing_else() -> None:
    alone = rendered(1, 1)["NetworkPolicy"]["spec"]
    assert alone["ingress"] == []
    targets = [rule["to"][0] for rule in alone["egress"]]
    assert [set(target) for target in targets] == [
        {"namespaceSelector"},
        {"podSelector"},
        {"ipBlock"},
    ]
    names = alone["egress"][0]
    assert {port["port"] for port in names["ports"]} == {53}
    assert names["to"][1] == {"ipBlock": {"cidr": "169.254.20.10/32"}}
    several = rendered(4, 8)["NetworkPolicy"]["spec"]
    (peers,) = several["ingress"]
    assert peers["from"][0]["podSelector"]["matchLabels"]["taciturn.dev/job"] == WORKER.job_id


def test_it_starts_suspended_and_in_its_queue() -> None:
    job = rendered(1, 1)["Job"]
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "jobs"


def test_names_fit_host_names() -> None:
    assert WORKER.name == "taciturn-job-0123456789abcdef-2"
    with pytest.raises(LaunchError, match="too long"):
        _ = Worker("job_" + "a" * 60, 1).name
