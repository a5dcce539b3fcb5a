"""A cluster autoscaler in accelerated time, and the ways in which it fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fake_kubernetes.events import record
from fake_kubernetes.quantities import amount
from fake_kubernetes.scheduler import requests, untolerated
from fake_kubernetes.store import Object, Store

_TERMINAL = ("Succeeded", "Failed")
_GPU = "nvidia.com/gpu"
_SOURCE = "cluster-autoscaler"
_NO_EVICTION = "cluster-autoscaler.kubernetes.io/safe-to-evict"


@dataclass
class Group:
    """Nodes of one kind, from none to `largest`.

    Attributes:
        quota: nodes that the cloud really gives; fewer than `largest` is "no quota".
        create_s, ready_s, driver_s: until the node is there, is ready, and has its GPUs.
        never_ready: it stays NotReady.
        no_gpus: its driver never advertises GPUs.
        idle_s: how long a node is unneeded before it goes.
        preempt_s: of each node made, in turn: seconds after readiness at which the cloud takes it
            back. Nodes after these stay.
        stays: a node of this group does not go; a finalizer or `pinned` says why.
    """

    name: str
    gpus: int = 1
    cpu: str = "8"
    memory: str = "32Gi"
    storage: str = "200Gi"
    labels: dict[str, str] = field(default_factory=dict)
    largest: int = 2
    quota: int | None = None
    create_s: float = 20.0
    ready_s: float = 10.0
    driver_s: float = 5.0
    never_ready: bool = False
    no_gpus: bool = False
    idle_s: float = 60.0
    preempt_s: list[float] = field(default_factory=list)
    stays: str | None = None


@dataclass
class _Machine:
    """A node, from the request to its end."""

    group: Group
    name: str
    at: datetime
    preempt_s: float | None
    made: bool = False
    idle_since: datetime | None = None


class Autoscaler:
    """Makes nodes for pods that fit nowhere, and removes those that nobody needs.

    Attributes:
        made, gone: names of nodes, in order.
    """

    def __init__(self, store: Store, preempt: object) -> None:
        self.store = store
        self.groups: list[Group] = []
        self.made: list[str] = []
        self.gone: list[str] = []
        self._machines: dict[str, _Machine] = {}
        self._preempt = preempt
        self._asked: dict[str, str] = {}

    def reconcile(self) -> None:
        """One look at pods and nodes."""
        for pod in self.store.all("pods"):
            waits = (pod["status"].get("conditions") or [{}])[0].get("reason") == "Unschedulable"
            if waits and pod["status"]["phase"] == "Pending" and self.groups:
                self._scale_up(pod)
        for machine in list(self._machines.values()):
            self._advance(machine)

    def forget(self, name: str) -> None:
        """The node is gone."""
        self._machines.pop(name, None)
        self.gone.append(name)

    def _scale_up(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if self._asked.get(uid) in self._machines or "deletionTimestamp" in pod["metadata"]:
            return
        fitting = [group for group in self.groups if self._fits(pod, group)]
        if not fitting:
            words = (
                f"pod didn't trigger scale-up: {len(self.groups)} node(s) didn't match Pod's node "
                "affinity/selector"
            )
            record(self.store, pod, "Pod", "NotTriggerScaleUp", words, _SOURCE)
            return
        group = fitting[0]
        count = sum(machine.group is group for machine in self._machines.values())
        if count >= group.largest:
            words = "pod didn't trigger scale-up: 1 max node group size reached"
            record(self.store, pod, "Pod", "NotTriggerScaleUp", words, _SOURCE)
        elif group.quota is not None and count >= group.quota:
            words = (
                f"Node scale up in zone a associated with this pod failed: quota of {group.name} "
                "exceeded. Pod is at risk of not being scheduled."
            )
            record(self.store, pod, "Pod", "FailedScaleUp", words, _SOURCE, warning=True)
        else:
            self._order(pod, group, count)

    def _order(self, pod: Object, group: Group, count: int) -> None:
        number = sum(name.startswith(f"{group.name}-") for name in self.made) + 1
        name = f"{group.name}-{number}"
        preempt_s = group.preempt_s.pop(0) if group.preempt_s else None
        self._machines[name] = _Machine(group, name, self.store.clock.now(), preempt_s)
        self._asked[pod["metadata"]["uid"]] = name
        self.made.append(name)
        sizes = f"{group.name} {count}->{count + 1} (max: {group.largest})"
        words = f"pod triggered scale-up: [{{{sizes}}}]"
        record(self.store, pod, "Pod", "TriggeredScaleUp", words, _SOURCE)

    def _fits(self, pod: Object, group: Group) -> bool:
        node = _node(group, "template")
        offered = {**node["status"]["allocatable"], _GPU: str(group.gpus)}
        selector = (pod["spec"].get("nodeSelector") or {}).items()
        enough = all(amount(offered.get(k, "0")) >= v for k, v in requests(pod).items())
        matches = selector <= node["metadata"]["labels"].items()
        return enough and matches and untolerated(pod, node) is None

    def _advance(self, machine: _Machine) -> None:
        group, now = machine.group, self.store.clock.now()
        age = (now - machine.at).total_seconds()
        if not machine.made:
            if age >= group.create_s:
                machine.made = True
                self.store.add("nodes", _node(group, machine.name))
            return
        node = self.store.find("nodes", None, machine.name)
        if node is None:
            self.forget(machine.name)
            return
        since = age - group.create_s
        if since >= group.ready_s and not group.never_ready:
            gpus = since >= group.ready_s + group.driver_s and not group.no_gpus
            self.store.edit("nodes", node, lambda new: _readied(new, group, gpus, self.store))
        if machine.preempt_s is not None and since >= group.ready_s + machine.preempt_s:
            self._preempt(machine.name)  # type: ignore[operator]
            return
        self._consider_removal(machine, node, now)

    def _consider_removal(self, machine: _Machine, node: Object, now: datetime) -> None:
        if any(_keeps(pod, machine.name) for pod in self.store.all("pods")) or self._expected(
            machine
        ):
            machine.idle_since = None
            return
        machine.idle_since = machine.idle_since or now
        if now < machine.idle_since + timedelta(seconds=machine.group.idle_s):
            return
        if machine.group.stays == "pinned":
            return
        if "deletionTimestamp" not in node["metadata"]:
            record(
                self.store, node, "Node", "ScaleDown", "node removed by cluster autoscaler", _SOURCE
            )
        self.store.edit("nodes", node, lambda new: _going(new, self.store))

    def _expected(self, machine: _Machine) -> bool:
        """A pod for which the node was made, and which waits for it still."""
        for pod in self.store.all("pods"):
            mine = self._asked.get(pod["metadata"]["uid"]) == machine.name
            if mine and not pod["spec"].get("nodeName") and pod["status"]["phase"] == "Pending":
                return "deletionTimestamp" not in pod["metadata"]
        return False


def _keeps(pod: Object, node: str) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    if pod["spec"].get("nodeName") != node or pod["status"]["phase"] in _TERMINAL:
        return False
    return not any(owner["kind"] == "DaemonSet" for owner in owners)


def _going(node: Object, store: Store) -> None:
    node["metadata"].setdefault("deletionTimestamp", store.clock.stamp())
    node.setdefault("spec", {})["taints"] = [
        {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    ]


def _node(group: Group, name: str) -> Object:
    labels = {"kubernetes.io/hostname": name, "pool": group.name, **group.labels}
    amounts = {
        "cpu": group.cpu, "memory": group.memory, "ephemeral-storage": group.storage, "pods": "110",
    }  # fmt: skip
    taints = [{"key": _GPU, "value": "present", "effect": "NoSchedule"}] if group.gpus else []
    made: Object = {
        "kind": "Node", "apiVersion": "v1",
        "metadata": {"name": name, "labels": labels, "annotations": {}},
        "spec": {"taints": taints},
        "status": {
            "capacity": dict(amounts), "allocatable": dict(amounts),
            "conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady",
                            "message": "container runtime network not ready"}],
        },
    }  # fmt: skip
    if group.stays == "finalizer":
        made["metadata"]["finalizers"] = ["karpenter.sh/termination"]
    if group.stays == "pinned":
        made["metadata"]["annotations"] = {
            "cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"
        }
    return made


def _readied(node: Object, group: Group, gpus: bool, store: Store) -> None:
    if node["status"]["conditions"][0]["status"] == "False":
        node["status"]["conditions"] = [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastTransitionTime": store.clock.stamp(),
        }]  # fmt: skip
    if gpus and group.gpus:
        node["status"]["capacity"][_GPU] = node["status"]["allocatable"][_GPU] = str(group.gpus)
