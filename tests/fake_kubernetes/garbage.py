"""Deletion that reaches dependents, namespaces that empty themselves, pods of lost nodes."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from fake_kubernetes.clock import moment
from fake_kubernetes.jobs import mark_deleted
from fake_kubernetes.store import Object, Store

_OWNED = ("pods", "services", "secrets", "configmaps", "networkpolicies", "jobs")
_OWNERS = {
    "Job": "jobs", "Pod": "pods", "ConfigMap": "configmaps", "Service": "services",
    "NetworkPolicy": "networkpolicies",
}  # fmt: skip
_LOST_NODE_S = 60
_EVICTED_S = 300


class GarbageCollector:
    """Dependents follow their owners.

    Attributes:
        slow_s: how long each of them may be left alone before, in whichever order.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.slow_s = 0.0
        self._due: dict[str, datetime] = {}
        self._missing: dict[str, str] = {}

    def reconcile(self) -> None:
        """One look at everything."""
        self._orphans()
        for resource in _OWNERS.values():
            for owner in self.store.all(resource):
                if "deletionTimestamp" in owner["metadata"]:
                    self._owner_goes(resource, owner)
        for room in self.store.all("namespaces"):
            if "deletionTimestamp" in room["metadata"]:
                self._empty(room)
        self._pods_without_node()
        self._pods_of_dead_nodes()

    def _orphans(self) -> None:
        for resource in _OWNED:
            for each in self.store.all(resource):
                owners = each["metadata"].get("ownerReferences") or ()
                if owners and not any(self._exists(each, owner) for owner in owners):
                    self._delete(resource, each)

    def _exists(self, each: Object, owner: Object) -> bool:
        resource = _OWNERS.get(owner["kind"])
        if resource is None:
            return True
        found = self.store.find(resource, each["metadata"].get("namespace"), owner["name"])
        return found is not None and found["metadata"]["uid"] == owner["uid"]

    def _owner_goes(self, resource: str, owner: Object) -> None:
        names = owner["metadata"].get("finalizers") or []
        uid = owner["metadata"]["uid"]
        held = [
            (kind, each)
            for kind in _OWNED
            for each in self.store.all(kind, owner["metadata"].get("namespace"))
            if any(ref["uid"] == uid for ref in each["metadata"].get("ownerReferences") or ())
        ]
        if "orphan" in names:
            for kind, each in held:
                self.store.edit(kind, each, lambda new: _forget_owner(new, uid))
            self._release(resource, owner, "orphan")
        elif "foregroundDeletion" in names:
            for kind, each in held:
                self._delete(kind, each, foreground=True)
            if not any(_blocks(each, uid) for _, each in held):
                self._release(resource, owner, "foregroundDeletion")

    def _release(self, resource: str, owner: Object, name: str) -> None:
        def change(new: Object) -> None:
            new["metadata"]["finalizers"].remove(name)

        self.store.edit(resource, owner, change)

    def _delete(self, resource: str, each: Object, *, foreground: bool = False) -> None:
        uid, now = each["metadata"]["uid"], self.store.clock.now()
        late_s = self.slow_s * random.random()
        if now < self._due.setdefault(uid, now + timedelta(seconds=late_s)):
            return
        if "deletionTimestamp" in each["metadata"]:
            return
        # What owns pods goes after them; so does, where its owner waits, what owns anything.
        waits = resource == "jobs" or (foreground and self._has_dependents(uid))

        def mark(new: Object) -> None:
            if resource == "pods":
                mark_deleted(new, self.store)
                return
            new["metadata"]["deletionTimestamp"] = self.store.clock.stamp()
            new["metadata"]["deletionGracePeriodSeconds"] = 0
            names = new["metadata"].setdefault("finalizers", [])
            if waits and "foregroundDeletion" not in names:
                names.append("foregroundDeletion")

        self.store.edit(resource, each, mark)

    def _has_dependents(self, uid: str) -> bool:
        return any(
            ref["uid"] == uid
            for kind in _OWNED
            for each in self.store.all(kind)
            for ref in each["metadata"].get("ownerReferences") or ()
        )

    def _empty(self, room: Object) -> None:
        name = room["metadata"]["name"]
        left = False
        for resource in (*_OWNED, "events"):
            for each in self.store.all(resource, name):
                left = True
                self._delete(resource, each)
        if not left:
            self.store.edit("namespaces", room, lambda new: new["metadata"].pop("finalizers", None))

    def _pods_without_node(self) -> None:
        nodes = {node["metadata"]["name"] for node in self.store.all("nodes")}
        for pod in self.store.all("pods"):
            over = pod["status"]["phase"] in ("Succeeded", "Failed")
            node = pod["spec"].get("nodeName")
            if "deletionTimestamp" in pod["metadata"] and not node and not over:
                self.store.edit("pods", pod, _failed)
            elif node and node not in nodes and self._long_gone(pod):
                self.store.edit("pods", pod, self._lost)

    def _pods_of_dead_nodes(self) -> None:
        """Told to end after a while, by taint; nobody is there who would do it, so they stay."""
        now = self.store.clock.now()
        for node in self.store.all("nodes"):
            unknown = [each for each in node["status"]["conditions"] if each["status"] == "Unknown"]
            if not unknown or now < moment(unknown[0]["lastTransitionTime"]) + timedelta(
                seconds=_EVICTED_S
            ):
                continue
            for pod in self.store.all("pods"):
                mine = pod["spec"].get("nodeName") == node["metadata"]["name"]
                if mine and "deletionTimestamp" not in pod["metadata"]:
                    self.store.edit("pods", pod, lambda new: mark_deleted(new, self.store))

    def _long_gone(self, pod: Object) -> bool:
        """The collector waits before it believes that a node is gone."""
        key = pod["metadata"]["uid"]
        first = self._missing.setdefault(key, self.store.clock.stamp())
        return (self.store.clock.now() - moment(first)).total_seconds() >= _LOST_NODE_S

    def _lost(self, pod: Object) -> None:
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            _failed(pod)
            pod["status"].setdefault("conditions", []).append({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": self.store.clock.stamp(),
            })  # fmt: skip
        mark_deleted(pod, self.store, 0)


def _failed(pod: Object) -> None:
    pod["status"]["phase"] = "Failed"


def _forget_owner(each: Object, uid: str) -> None:
    refs = each["metadata"]["ownerReferences"]
    each["metadata"]["ownerReferences"] = [ref for ref in refs if ref["uid"] != uid]


def _blocks(each: Object, uid: str) -> bool:
    refs = each["metadata"]["ownerReferences"]
    return any(ref["uid"] == uid and ref.get("blockOwnerDeletion") for ref in refs)
