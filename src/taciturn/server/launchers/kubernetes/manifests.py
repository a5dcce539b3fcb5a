"""The objects of one worker. All but the Job are owned by it, and go with it; the Secret is owned
by the policy, so that it goes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from kubernetes.client import models as k8s

from taciturn.certificate.keygen import MAX_DAYS, new_key
from taciturn.server.launchers.kubernetes.client import Object
from taciturn.server.launchers.kubernetes.names import Worker
from taciturn.server.launchers.kubernetes.pods import CONTAINER, pod_template
from taciturn.server.launchers.kubernetes.settings import EgressRule, KubernetesSettings
from taciturn.server.launchers.kubernetes.sizing import Machine
from taciturn.wire.exits import FINAL

READY = "taciturn.dev/ready"
POOL = "taciturn.dev/pool"
NODES = "taciturn.dev/nodes"
GIVEN_UP = "taciturn.dev/given-up"
"""On a Job whose machines did not come in time."""

_NODE_LOCAL_DNS = "169.254.20.10/32"
_QUEUE = "kueue.x-k8s.io/queue-name"


def job(
    worker: Worker, machine: Machine, settings: KubernetesSettings, secrets: Sequence[str] = ()
) -> k8s.V1Job:
    """The Job, suspended: it starts when everything that it needs is there.

    Args:
        secrets: of the data's owner, by name only.
    """
    labels = worker.labels(settings.instance)
    if settings.queue:
        labels[_QUEUE] = settings.queue
    several = machine.nodes > 1
    return k8s.V1Job(
        api_version="batch/v1",
        kind="Job",
        metadata=k8s.V1ObjectMeta(
            name=worker.name,
            labels=labels,
            annotations={POOL: machine.pool.name, NODES: str(machine.nodes)},
        ),
        spec=k8s.V1JobSpec(
            suspend=True,
            completions=machine.nodes,
            parallelism=machine.nodes,
            completion_mode="Indexed" if several else "NonIndexed",
            backoff_limit=settings.retries * machine.nodes,
            pod_failure_policy=_failure_policy(),
            pod_replacement_policy="Failed",
            active_deadline_seconds=settings.deadline_s,
            ttl_seconds_after_finished=settings.ttl_s,
            template=pod_template(worker, machine, settings, secrets),
        ),
    )


def _failure_policy() -> k8s.V1PodFailurePolicy:
    """A worker that must not be started again fails the Job; one that the cluster took away is
    replaced and not counted; everything else counts."""
    final = k8s.V1PodFailurePolicyRule(
        action="FailJob",
        on_exit_codes=k8s.V1PodFailurePolicyOnExitCodesRequirement(
            container_name=CONTAINER, operator="In", values=sorted(map(int, FINAL))
        ),
    )
    disrupted = k8s.V1PodFailurePolicyRule(
        action="Ignore",
        on_pod_conditions=[
            k8s.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
        ],
    )
    return k8s.V1PodFailurePolicy(rules=[final, disrupted])


def secret(
    worker: Worker, owner: k8s.V1OwnerReference, environment: Mapping[str, str], instance: str
) -> k8s.V1Secret:
    """Secret with the worker's environment, its token above all. Immutable: it is made anew, not
    changed."""
    return k8s.V1Secret(
        api_version="v1",
        kind="Secret",
        metadata=_owned(worker, owner, instance),
        type="Opaque",
        immutable=True,
        string_data=dict(environment),
    )


def signing_key(name: str) -> k8s.V1Secret:
    """A key of the gateway's own, which signs certificates; it belongs to no Job."""
    key = new_key(
        name=f"taciturn gateway {name}", valid_from=datetime.now(UTC), days=MAX_DAYS, password=None
    )
    return k8s.V1Secret(
        api_version="v1",
        kind="Secret",
        metadata=k8s.V1ObjectMeta(name=name),
        type="Opaque",
        immutable=True,
        string_data={"key.pem": key.private.decode(), "trust.json": key.trust.decode()},
    )


def service(
    worker: Worker, owner: k8s.V1OwnerReference, settings: KubernetesSettings
) -> k8s.V1Service:
    """Headless: gives the pods of several machines names, before they are ready."""
    return k8s.V1Service(
        api_version="v1",
        kind="Service",
        metadata=_owned(worker, owner, settings.instance),
        spec=k8s.V1ServiceSpec(
            cluster_ip="None",
            publish_not_ready_addresses=True,
            selector=worker.labels(settings.instance),
            ports=[k8s.V1ServicePort(name="rendezvous", port=settings.rendezvous_port)],
        ),
    )


def network_policy(
    worker: Worker, owner: k8s.V1OwnerReference, nodes: int, settings: KubernetesSettings
) -> k8s.V1NetworkPolicy:
    """Policy of a worker. Out: names, the gateway, stores, the job's other machines. In: those.

    However its owner goes, what it owns itself goes before it: the finalizer is the garbage
    collector's own.
    """
    own_pods = k8s.V1LabelSelector(match_labels=worker.labels(settings.instance))
    peers = [k8s.V1NetworkPolicyPeer(pod_selector=own_pods)] if nodes > 1 else []
    egress = [_names(), _gateway(settings), *map(_store, settings.egress)]
    if peers:
        egress.append(k8s.V1NetworkPolicyEgressRule(to=peers))
    ingress = [k8s.V1NetworkPolicyIngressRule.model_validate({"from": peers})] if peers else []
    metadata = _owned(worker, owner, settings.instance)
    metadata.finalizers = ["foregroundDeletion"]
    return k8s.V1NetworkPolicy(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        metadata=metadata,
        spec=k8s.V1NetworkPolicySpec(
            pod_selector=own_pods,
            policy_types=["Ingress", "Egress"],
            ingress=ingress,
            egress=egress,
        ),
    )


def _names() -> k8s.V1NetworkPolicyEgressRule:
    """Rule for the cluster's DNS: in kube-system, or cached on each node (NodeLocal DNSCache),
    where it has an address that is no pod's."""
    system = k8s.V1LabelSelector(match_labels={"kubernetes.io/metadata.name": "kube-system"})
    ports = [k8s.V1NetworkPolicyPort(protocol=protocol, port=53) for protocol in ("UDP", "TCP")]
    cache = k8s.V1IPBlock(cidr=_NODE_LOCAL_DNS)
    peers = [
        k8s.V1NetworkPolicyPeer(namespace_selector=system),
        k8s.V1NetworkPolicyPeer(ip_block=cache),
    ]
    return k8s.V1NetworkPolicyEgressRule(to=peers, ports=ports)


def _gateway(settings: KubernetesSettings) -> k8s.V1NetworkPolicyEgressRule:
    pods = k8s.V1LabelSelector(match_labels=settings.gateway_pods())
    return k8s.V1NetworkPolicyEgressRule(
        to=[k8s.V1NetworkPolicyPeer(pod_selector=pods)],
        ports=[k8s.V1NetworkPolicyPort(protocol="TCP", port=settings.gateway_port)],
    )


def _store(egress: EgressRule) -> k8s.V1NetworkPolicyEgressRule:
    ports = [k8s.V1NetworkPolicyPort(protocol="TCP", port=port) for port in egress.ports]
    block = k8s.V1IPBlock(cidr=egress.cidr)
    return k8s.V1NetworkPolicyEgressRule(
        to=[k8s.V1NetworkPolicyPeer(ip_block=block)], ports=ports or None
    )


def owner_of(job_name: str, uid: str) -> k8s.V1OwnerReference:
    """The Job as owner; foreground deletion waits for what it owns."""
    return k8s.V1OwnerReference(
        api_version="batch/v1",
        kind="Job",
        name=job_name,
        uid=uid,
        controller=True,
        block_owner_deletion=True,
    )


def policy_as_owner(name: str, uid: str) -> k8s.V1OwnerReference:
    """The policy as owner of what no worker may have without it."""
    return k8s.V1OwnerReference(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        name=name,
        uid=uid,
        controller=True,
        block_owner_deletion=True,
    )


def given_up(job: Object) -> bool:
    """True if the Job was ended because its machines did not come in time."""
    return GIVEN_UP in (job["metadata"].get("annotations") or {})


def _owned(worker: Worker, owner: k8s.V1OwnerReference, instance: str) -> k8s.V1ObjectMeta:
    return k8s.V1ObjectMeta(
        name=worker.name, labels=worker.labels(instance), owner_references=[owner]
    )
