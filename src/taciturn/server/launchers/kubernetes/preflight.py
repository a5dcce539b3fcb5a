"""Can jobs run in this cluster? Asked before the first one, by `taciturn doctor --kubernetes`.

Every check that fails says what to do. Nothing is created: what only a pod could find out (whether
it reaches the stores) is asked of the policies that would stop it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes.client import Cluster, ClusterError, Kind, Object
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool

_NEEDED = (
    ("batch", "jobs", ("create", "get", "list", "watch", "delete", "patch")),
    ("", "pods", ("get", "list", "watch", "delete")),
    ("", "events", ("list", "watch")),
    ("", "services", ("create", "list", "delete")),
    ("", "secrets", ("create", "delete")),
    ("", "configmaps", ("create", "list", "patch", "delete")),
    ("networking.k8s.io", "networkpolicies", ("create", "list", "delete")),
)
_CLOCK_S = 5.0
OLDEST = (1, 31)
"""The oldest Kubernetes that works: podFailurePolicy and podReplacementPolicy, and the sleep before
a stop."""
# By these a cluster's autoscaler knows what a pool that is empty would offer.
_PROVIDERS = (
    "cloud.google.com/",
    "karpenter.sh/",
    "karpenter.k8s.aws/",
    "eks.amazonaws.com/",
    "kubernetes.azure.com/",
    "node.kubernetes.io/instance-type",
    "nvidia.com/gpu.",
)


@dataclass(frozen=True, slots=True)
class ClusterFinding:
    """One line of the examination; `remedy` is empty where all is well.

    Attributes:
        advice: jobs can run as it is; the remedy would make something better.
    """

    what: str
    text: str
    remedy: str = ""
    advice: bool = False

    @property
    def is_problem(self) -> bool:
        """True if jobs cannot run, or not as they should, before something is done."""
        return bool(self.remedy) and not self.advice


class ClusterQueries(Protocol):
    """Queries to a cluster."""

    def may(self, verb: str, group: str, resource: str, *, everywhere: bool = False) -> bool:
        """True if the gateway may do this in its namespace, or `everywhere`."""
        ...

    def nodes(self) -> Sequence[Object]:
        """All nodes."""
        ...

    def has(self, kind: str, name: str) -> bool:
        """True if there is a service account, or a volume claim, of this name."""
        ...

    def policies(self) -> Sequence[Object]:
        """The namespace's network policies."""
        ...

    def time(self) -> datetime:
        """Time of the API server."""
        ...

    def version(self) -> tuple[int, int]:
        """Version of Kubernetes: major and minor."""
        ...


@dataclass(frozen=True, slots=True)
class ApiServerQueries:
    """Queries to a cluster's API server."""

    cluster: Cluster

    def may(self, verb: str, group: str, resource: str, *, everywhere: bool = False) -> bool:
        """Answer of the server itself, by a SelfSubjectAccessReview."""
        from kubernetes.client import (
            AuthorizationV1Api,
            V1ResourceAttributes,
            V1SelfSubjectAccessReview,
            V1SelfSubjectAccessReviewSpec,
        )

        attributes = V1ResourceAttributes(
            verb=verb,
            group=group,
            resource=resource,
            namespace=None if everywhere else self.cluster.namespace,
        )
        review = V1SelfSubjectAccessReview(
            spec=V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        answer = AuthorizationV1Api(self.cluster.api).create_self_subject_access_review(review)
        return bool(answer.status and answer.status.allowed)

    def nodes(self) -> Sequence[Object]:
        """Nodes, from the API server."""
        return self.cluster.list(Kind.NODES)[0]

    def has(self, kind: str, name: str) -> bool:
        """True if it can be read."""
        from kubernetes.client import ApiException, CoreV1Api

        core = CoreV1Api(self.cluster.api)
        read: dict[str, Callable[[str, str], Any]] = {
            "serviceaccounts": core.read_namespaced_service_account,
            "persistentvolumeclaims": core.read_namespaced_persistent_volume_claim,
        }
        try:
            read[kind](name, self.cluster.namespace)
        except ApiException as error:
            if error.status == 404:
                return False
            raise ClusterError(error.status or 0, f"{kind}/{name}: {error.reason}") from None
        return True

    def policies(self) -> Sequence[Object]:
        """Network policies, from the API server."""
        return self.cluster.list(Kind.POLICIES)[0]

    def time(self) -> datetime:
        """Time in the header of an answer; good to a second."""
        from kubernetes.client import VersionApi

        _, _, headers = VersionApi(self.cluster.api).get_code_with_http_info()
        return parsedate_to_datetime(headers["Date"])

    def version(self) -> tuple[int, int]:
        """Version as the API server states it; some add a sign to the minor one."""
        from kubernetes.client import VersionApi

        code = VersionApi(self.cluster.api).get_code()
        major, minor = (re.match(r"\d+", part or "") for part in (code.major, code.minor))
        return (int(major[0]) if major else 0), (int(minor[0]) if minor else 0)


def examine(
    questions: ClusterQueries,
    settings: KubernetesSettings,
    *,
    storage: Callable[[], str] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[ClusterFinding]:
    """All findings, in the order in which a job would need them.

    Args:
        storage: tries the object store and says what it is; raises if it cannot be written.
    """
    checks: tuple[Callable[[], Iterator[ClusterFinding]], ...] = (
        lambda: _version(questions.version()),
        lambda: _permissions(questions, settings),
        lambda: _pools(questions.nodes(), settings),
        lambda: _accounts(questions, settings),
        lambda: _storage(questions, settings, storage),
        lambda: _egress(questions.policies(), settings),
        lambda: _clock(questions.time(), now()),
    )
    return [finding for check in checks for finding in _safely(check)]


def _safely(check: Callable[[], Iterator[ClusterFinding]]) -> list[ClusterFinding]:
    try:
        return list(check())
    except (LaunchError, OSError) as error:
        return [
            ClusterFinding(
                "cluster", str(error), "check that the API server answers: kubectl get nodes"
            )
        ]
    except Exception as error:  # the client's own, of many kinds
        return [
            ClusterFinding(
                "cluster",
                f"{type(error).__name__}: the API server did not answer as expected",
                "check that the API server answers: kubectl get nodes",
            )
        ]


def _version(version: tuple[int, int]) -> Iterator[ClusterFinding]:
    oldest = ".".join(map(str, OLDEST))
    old = version < OLDEST
    yield ClusterFinding(
        "Kubernetes",
        ".".join(map(str, version)),
        f"upgrade it to {oldest} or later: what keeps jobs from running twice is not in it"
        if old
        else "",
    )


def _permissions(
    questions: ClusterQueries, settings: KubernetesSettings
) -> Iterator[ClusterFinding]:
    missing = [
        f"{verb} {resource}"
        for group, resource, verbs in _NEEDED
        for verb in verbs
        if not questions.may(verb, group, resource)
    ]
    yield ClusterFinding(
        f"permissions in {settings.namespace}",
        f"missing: {', '.join(missing)}" if missing else "all that jobs need",
        "bind the chart's Role to the gateway's service account" if missing else "",
    )
    nodes = all(questions.may(verb, "", "nodes", everywhere=True) for verb in ("list", "watch"))
    yield ClusterFinding(
        "nodes",
        "can be read" if nodes else "cannot be read: nobody could see that one has gone",
        "" if nodes else "bind the chart's ClusterRole NAMESPACE-NAME-nodes",
    )
    # A patch that changes nothing is answered with the whole Secret.
    surplus = [
        verb
        for verb in ("get", "list", "watch", "patch", "update")
        if questions.may(verb, "", "secrets")
    ]
    yield ClusterFinding(
        "secrets",
        f"can be read ({', '.join(surplus)}), which no job needs" if surplus else "cannot be read",
        "take these verbs away: the data's credentials are the owner's" if surplus else "",
    )


def _pools(nodes: Sequence[Object], settings: KubernetesSettings) -> Iterator[ClusterFinding]:
    for pool in settings.pools:
        matching = [node for node in nodes if _matches(node, pool)]
        ready = [node for node in matching if _is_ready(node)]
        dead = len(matching) - len(ready)
        if ready:
            yield _gpus(pool, ready, dead)
        elif dead and not pool.scales:
            yield ClusterFinding(
                f"pool {pool.name}",
                f"{_count(dead)}, not ready",
                "look at what they say: kubectl describe nodes",
            )
        else:
            yield _from_zero(pool)


def _is_ready(node: Object) -> bool:
    """True if a pod would be put there: its agent reports, and it is not cordoned."""
    conditions = node["status"].get("conditions") or ()
    usable = not (node.get("spec") or {}).get("unschedulable")
    return usable and any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)


def _count(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _matches(node: Object, pool: Pool) -> bool:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in pool.node_selector.items())


def _gpus(pool: Pool, nodes: Sequence[Object], dead: int) -> ClusterFinding:
    what = f"pool {pool.name}"
    not_ready = f" ({dead} more not ready)" if dead else ""
    offered = [int(node["status"]["allocatable"].get("nvidia.com/gpu", "0")) for node in nodes]
    if pool.gpus and max(offered) < pool.gpus:
        return ClusterFinding(
            what,
            f"{_count(len(nodes))}, of which the best offers {max(offered)} of {pool.gpus} GPUs",
            "install NVIDIA's device plugin (or GPU operator), or correct `gpus`",
        )
    gpus = f", up to {max(offered)} GPUs each" if pool.gpus else ""
    return ClusterFinding(what, f"{_count(len(nodes))} now{gpus}{not_ready}")


def _from_zero(pool: Pool) -> ClusterFinding:
    """An empty pool: will the autoscaler know that a node of it would do?"""
    what = f"pool {pool.name}"
    if not pool.scales:
        return ClusterFinding(
            what, "no node has its labels", f"label one: {_labels(pool) or 'any'}"
        )
    provider_labels = [key for key in pool.node_selector if key.startswith(_PROVIDERS)]
    if pool.node_selector and not provider_labels:
        return ClusterFinding(
            what,
            f"no node now, and {_labels(pool)} is no label that autoscalers know of empty pools",
            "tag the node group with k8s.io/cluster-autoscaler/node-template/label/KEY, put the "
            "label on the Karpenter NodePool, or select by a label of the provider",
            advice=True,  # whether that was done cannot be seen from here
        )
    if pool.gpus and not pool.tolerations:
        return ClusterFinding(
            what,
            "no node now, and pods tolerate no taint, which GPU nodes have",
            "add the toleration {key: nvidia.com/gpu, operator: Exists}",
        )
    return ClusterFinding(
        what, f"no node now; comes from zero by {', '.join(provider_labels) or 'its size'}"
    )


def _labels(pool: Pool) -> str:
    return ", ".join(f"{key}={value}" for key, value in pool.node_selector.items())


def _accounts(questions: ClusterQueries, settings: KubernetesSettings) -> Iterator[ClusterFinding]:
    name = settings.service_account
    if name:
        exists = questions.has("serviceaccounts", name)
        yield ClusterFinding(
            "workers' service account",
            f"{name} {'is there' if exists else 'is not there'}",
            "" if exists else "create it, or set worker.serviceAccount.create",
        )


def _storage(
    questions: ClusterQueries, settings: KubernetesSettings, storage: Callable[[], str] | None
) -> Iterator[ClusterFinding]:
    if storage is not None:
        try:
            yield ClusterFinding("object store", f"{storage()} can be written and read")
        except Exception as error:  # of whichever store it is
            yield ClusterFinding(
                "object store",
                f"cannot be written ({type(error).__name__})",
                "check TACITURN_STORAGE_URL and the gateway's credentials for it",
            )
    if settings.checkpoint_url:
        # What is in the Secret, and whether it is there, only workers may see.
        where = f"sealed copies go to {settings.checkpoint_url}"
        yield ClusterFinding(
            "checkpoints", f"{where}, under the key of {settings.checkpoint_secret}"
        )
    claim = settings.workspace_claim
    if not claim:
        is_lost = not settings.checkpoint_url
        yield ClusterFinding(
            "workspaces",
            "on the node's disk: a job whose node is taken away begins again"
            if is_lost
            else "on the node's disk; checkpoints outlive it in their store",
            "give worker.checkpoints a store and a key, or worker.workspaceClaim a ReadWriteMany "
            "volume; checkpoints then outlive nodes"
            if is_lost
            else "",
            advice=is_lost,
        )
        return
    exists = questions.has("persistentvolumeclaims", claim)
    yield ClusterFinding(
        "workspaces",
        f"claim {claim} {'is there' if exists else 'is not there'}",
        "" if exists else "create the PersistentVolumeClaim (ReadWriteMany)",
    )


def _egress(policies: Sequence[Object], settings: KubernetesSettings) -> Iterator[ClusterFinding]:
    limited = settings.network_policy or any(_of_workers(policy) for policy in policies)
    declared = ", ".join(rule.cidr for rule in settings.egress)
    if not limited:
        yield ClusterFinding(
            "egress of workers",
            "anywhere: no policy limits it",
            "set network_policy: private rows could leave the cluster otherwise",
        )
    elif not declared:
        yield ClusterFinding(
            "egress of workers",
            "the gateway and nothing else; data outside the cluster cannot be read",
            "list the CIDRs of data and stores in networkPolicy.workerEgress, if there are any",
            advice=True,
        )
    else:
        yield ClusterFinding("egress of workers", f"the gateway and {declared}")


def _of_workers(policy: Object) -> bool:
    labels = policy["spec"].get("podSelector", {}).get("matchLabels", {})
    return bool(labels.get("app.kubernetes.io/component") == "worker")


def _clock(server_time: datetime, own_time: datetime) -> Iterator[ClusterFinding]:
    apart_s = abs((own_time - server_time).total_seconds())
    fine = apart_s <= _CLOCK_S
    yield ClusterFinding(
        "clock",
        f"{apart_s:.0f} s from the API server's",
        "" if fine else "synchronise the clocks (NTP): leases and deadlines are measured by them",
    )
