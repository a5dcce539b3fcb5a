"""The pod of a worker: it asks for exactly one right machine, and gets as few rights as it can do
with."""

from __future__ import annotations

from collections.abc import Sequence

from kubernetes.client import models as k8s

from taciturn.server.launchers.kubernetes.names import Labels, Worker
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.sizing import Machine

CONTAINER = "worker"
GPU = "nvidia.com/gpu"
WORKSPACE = "/workspace"
_PULL_S = 900
_SIGNING = "/etc/taciturn/signing"
_INDEX = "batch.kubernetes.io/job-completion-index"
_KEEP = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


def pod_template(
    worker: Worker, machine: Machine, settings: KubernetesSettings, secrets: Sequence[str] = ()
) -> k8s.V1PodTemplateSpec:
    """Template that the Job makes pods from.

    Args:
        secrets: Secrets of the data's owner, by name only: their keys become the environment.
    """
    labels = {**settings.labels, **worker.labels(settings.instance)}
    annotations = {**settings.annotations, **_KEEP}
    several = machine.nodes > 1
    pool = machine.pool
    spec = k8s.V1PodSpec(
        restart_policy="Never",
        containers=[_container(worker, machine, settings, secrets)],
        volumes=_volumes(settings, pool),
        node_selector=dict(pool.node_selector) or None,
        tolerations=_tolerations(pool),
        affinity=_alone(settings.instance) if pool.whole_node else None,
        subdomain=worker.name if several else None,
        service_account_name=settings.service_account or None,
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=settings.grace_period_s,
        image_pull_secrets=[
            k8s.V1LocalObjectReference(name=name) for name in settings.image_pull_secrets
        ]
        or None,
        security_context=k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=settings.run_as,
            run_as_group=settings.run_as,
            fs_group=settings.run_as,
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
    )
    metadata = k8s.V1ObjectMeta(labels=labels, annotations=annotations)
    return k8s.V1PodTemplateSpec(metadata=metadata, spec=spec)


def _container(
    worker: Worker, machine: Machine, settings: KubernetesSettings, secrets: Sequence[str]
) -> k8s.V1Container:
    # The worker's own comes last, and counts where another one names the same.
    sources = [
        k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=name))
        for name in (*dict.fromkeys(secrets), worker.name)
    ]
    mounts = [
        k8s.V1VolumeMount(
            name="workspace",
            mount_path=WORKSPACE,
            sub_path=worker.job_id if settings.workspace_claim else None,
        ),
        k8s.V1VolumeMount(name="tmp", mount_path="/tmp"),
        k8s.V1VolumeMount(name="shm", mount_path="/dev/shm"),
    ]
    if settings.signing:
        mounts.append(k8s.V1VolumeMount(name="signing", mount_path=_SIGNING, read_only=True))
    return k8s.V1Container(
        name=CONTAINER,
        image=settings.image,
        image_pull_policy=settings.image_pull_policy,
        command=list(_command(worker, machine, settings)),
        working_dir=WORKSPACE,
        env=_variables(worker, machine, settings, secrets),
        env_from=sources,
        resources=_resources(machine),
        volume_mounts=mounts,
        security_context=k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            run_as_non_root=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
    )


def _command(worker: Worker, machine: Machine, settings: KubernetesSettings) -> tuple[str, ...]:
    """Command of a pod: the worker, or torchrun that starts one for each GPU of each machine."""
    if machine.processes == 1 or settings.command[:3] != ("python", "-m", "taciturn.worker"):
        return settings.command
    meet_s = settings.start_s + _PULL_S
    meeting = (f"--master-addr={worker.first_host}", f"--master-port={settings.rendezvous_port}")
    return (
        *("python", "-m", "taciturn.worker.torchrun"),
        f"--nnodes={machine.nodes}",
        f"--nproc-per-node={max(1, machine.gpus)}",
        *(
            # The first machine waits for the last one, whose image has to be pulled, too.
            ("--node-rank=$(TACITURN_NODE_RANK)", *meeting, f"--rdzv-conf=timeout={meet_s}")
            if machine.nodes > 1
            else ("--standalone",)
        ),
        *("--max-restarts=0", "-m", "taciturn.worker"),
    )


def _variables(
    worker: Worker, machine: Machine, settings: KubernetesSettings, secrets: Sequence[str]
) -> list[k8s.V1EnvVar]:
    values = {
        "TACITURN_WORKSPACE": WORKSPACE,
        "HOME": WORKSPACE,
        "USER": CONTAINER,  # the image need not know the number that the worker runs as
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if settings.signing:
        values["TACITURN_SIGNING_KEY"] = f"{_SIGNING}/key.pem"
    if settings.checkpoint_secret and settings.checkpoint_secret in secrets:
        values["TACITURN_CHECKPOINT_URL"] = settings.checkpoint_url
    if machine.processes > 1:
        values["TACITURN_PEER_LIMIT_S"] = f"{settings.peer_limit_s:g}"
        # torchrun would give its processes 30 s for their last checkpoint.
        values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(max(1, settings.grace_period_s - 10))
    if machine.nodes > 1:
        values |= {
            "TACITURN_NODES": str(machine.nodes),
            "TACITURN_MASTER_ADDR": worker.first_host,
            "TACITURN_MASTER_PORT": str(settings.rendezvous_port),
        }
    variables = [k8s.V1EnvVar(name=name, value=value) for name, value in values.items()]
    if machine.nodes > 1:
        index = k8s.V1ObjectFieldSelector(field_path=f"metadata.labels['{_INDEX}']")
        source = k8s.V1EnvVarSource(field_ref=index)
        variables.append(k8s.V1EnvVar(name="TACITURN_NODE_RANK", value_from=source))
    return variables


def _resources(machine: Machine) -> k8s.V1ResourceRequirements:
    pool = machine.pool
    requests = {
        "cpu": pool.cpu,
        "memory": pool.memory,
        "ephemeral-storage": pool.ephemeral_storage,
    }
    limits = {"memory": pool.memory, "ephemeral-storage": pool.ephemeral_storage}
    if machine.gpus:
        limits[GPU] = str(machine.gpus)
    return k8s.V1ResourceRequirements(requests=requests, limits=limits)


def _tolerations(pool: Pool) -> list[k8s.V1Toleration] | None:
    tolerations = [k8s.V1Toleration.model_validate(toleration) for toleration in pool.tolerations]
    if pool.gpus and not any(toleration.key in (GPU, None) for toleration in tolerations):
        tolerations.append(k8s.V1Toleration(key=GPU, operator="Exists", effect="NoSchedule"))
    return tolerations or None


def _alone(instance: str) -> k8s.V1Affinity:
    """Keep other workers off the same machine: a machine made for one job goes with it."""
    term = k8s.V1PodAffinityTerm(
        topology_key="kubernetes.io/hostname",
        label_selector=k8s.V1LabelSelector(match_labels=Labels.shared(instance)),
    )
    rule = k8s.V1PodAntiAffinity(required_during_scheduling_ignored_during_execution=[term])
    return k8s.V1Affinity(pod_anti_affinity=rule)


def _volumes(settings: KubernetesSettings, pool: Pool) -> list[k8s.V1Volume]:
    if settings.workspace_claim:
        claim = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=settings.workspace_claim)
        workspace = k8s.V1Volume(name="workspace", persistent_volume_claim=claim)
    else:
        space = k8s.V1EmptyDirVolumeSource(size_limit=pool.ephemeral_storage)
        workspace = k8s.V1Volume(name="workspace", empty_dir=space)
    memory = k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=settings.shared_memory)
    volumes = [
        workspace,
        k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource()),
        k8s.V1Volume(name="shm", empty_dir=memory),
    ]
    if settings.signing:
        key = k8s.V1SecretVolumeSource(secret_name=settings.signing, default_mode=0o440)
        volumes.append(k8s.V1Volume(name="signing", secret=key))
    return volumes
