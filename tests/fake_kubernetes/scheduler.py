"""Binds pods to nodes: selectors, taints, resources, anti-affinity; says why it cannot."""

from __future__ import annotations

from collections import Counter

from fake_kubernetes import selectors
from fake_kubernetes.events import record
from fake_kubernetes.kubelet import ready
from fake_kubernetes.quantities import amount
from fake_kubernetes.store import Object, Store

_TERMINAL = ("Succeeded", "Failed")


class Scheduler:
    """One pod after the other."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def reconcile(self) -> None:
        """Bind what can be bound."""
        waiting = [
            pod
            for pod in self.store.all("pods")
            if not pod["spec"].get("nodeName")
            and pod["status"]["phase"] == "Pending"
            and "deletionTimestamp" not in pod["metadata"]
        ]
        for pod in sorted(waiting, key=lambda each: int(each["metadata"]["resourceVersion"])):
            self._place(pod)

    def _place(self, pod: Object) -> None:
        nodes = self.store.all("nodes")
        reasons: Counter[str] = Counter()
        for node in nodes:
            reason = self.obstacle(pod, node)
            if reason is None:
                self._bind(pod, node["metadata"]["name"])
                return
            reasons[reason] += 1
        counted = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        words = f"0/{len(nodes)} nodes are available: {counted}."
        if not nodes:
            words = "no nodes available to schedule pods"

        def unschedulable(new: Object) -> None:
            new["status"]["conditions"] = [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": words, "lastTransitionTime": self.store.clock.stamp(),
            }]  # fmt: skip

        known = pod["status"].get("conditions") or [{}]
        if known[0].get("message") != words:
            self.store.edit("pods", pod, unschedulable)
            record(self.store, pod, "Pod", "FailedScheduling", words, "default-scheduler",
                   warning=True)  # fmt: skip

    def obstacle(self, pod: Object, node: Object) -> str | None:
        """Return the reason why the pod cannot be on the node; None if it can."""
        spec, labels = pod["spec"], node["metadata"].get("labels") or {}
        taint = untolerated(pod, node)
        if taint is not None:
            return f"node(s) had untolerated taint(s) {{{taint}}}"
        if not ready(node):
            return "node(s) were not ready"
        if not (spec.get("nodeSelector") or {}).items() <= labels.items():
            return "node(s) didn't match Pod's node affinity/selector"
        here = [
            each
            for each in self.store.all("pods")
            if each["spec"].get("nodeName") == node["metadata"]["name"]
            and each["status"]["phase"] not in _TERMINAL
        ]
        for name, wanted in requests(pod).items():
            used = sum(requests(each).get(name, 0.0) for each in here)
            if used + wanted > amount(node["status"]["allocatable"].get(name, "0")):
                return f"Insufficient {name}"
        if any(_repels(pod, each) or _repels(each, pod) for each in here):
            return "node(s) didn't match pod anti-affinity rules"
        return None

    def _bind(self, pod: Object, node: str) -> None:
        def bind(new: Object) -> None:
            new["spec"]["nodeName"] = node
            new["status"]["conditions"] = [{
                "type": "PodScheduled", "status": "True",
                "lastTransitionTime": self.store.clock.stamp(),
            }]  # fmt: skip

        bound = self.store.edit("pods", pod, bind)
        if bound is not None:
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            words = f"Successfully assigned {name} to {node}"
            record(self.store, pod, "Pod", "Scheduled", words, "default-scheduler")


def untolerated(pod: Object, node: Object) -> str | None:
    """A taint that keeps the pod away."""
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint["effect"] == "PreferNoSchedule":
            continue
        if not any(_tolerates(each, taint) for each in pod["spec"].get("tolerations") or ()):
            return f"{taint['key']}: {taint.get('value', '')}"
    return None


def requests(pod: Object) -> dict[str, float]:
    """Return the pod's requests."""
    total: Counter[str] = Counter()
    for container in pod["spec"]["containers"]:
        for name, text in (container["resources"].get("requests") or {}).items():
            total[name] += amount(text)  # type: ignore[assignment]
    return dict(total)


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, taint["key"])
    same = toleration.get("value", "") == taint.get("value", "")
    return toleration.get("key") == taint["key"] and same


def _repels(pod: Object, other: Object) -> bool:
    rules = ((pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or ()
    for rule in rules:
        wanted = selectors.of_labels((rule.get("labelSelector") or {}).get("matchLabels") or {})
        same = pod["metadata"]["namespace"] == other["metadata"]["namespace"]
        if same and wanted(other) and pod["metadata"]["uid"] != other["metadata"]["uid"]:
            return True
    return False
