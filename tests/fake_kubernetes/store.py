"""The objects, each version of them once, and who waits for the next one."""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fake_kubernetes.clock import Clock

Object = dict[str, Any]
CLUSTER_WIDE = frozenset({"nodes", "namespaces", "persistentvolumes", "clusterroles"})


@dataclass(frozen=True, slots=True)
class Change:
    """One version of one object. `old` is None when it came, `new` when it went."""

    version: int
    resource: str
    old: Object | None
    new: Object | None

    @property
    def last(self) -> Object:
        """The object as it is, or was: with the version of its going."""
        if self.new is not None:
            return self.new
        assert self.old is not None
        return {
            **self.old,
            "metadata": {**self.old["metadata"], "resourceVersion": str(self.version)},
        }


class Store:
    """All objects. What is in it is never changed in place: a change is a new dictionary."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1000
        self.oldest = 1000
        self.history: deque[Change] = deque()
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}

    def find(self, resource: str, namespace: str | None, name: str) -> Object | None:
        """One object."""
        return self._objects.get(resource, {}).get((_room(resource, namespace), name))

    def all(self, resource: str, namespace: str | None = None) -> list[Object]:
        """Objects in the order of their keys; of all namespaces without one."""
        with self.lock:
            found = sorted(self._objects.get(resource, {}).items())
        return [each for (room, _), each in found if namespace is None or room == namespace]

    def add(self, resource: str, made: Object) -> Object:
        """A new object; metadata that only the server writes is written. KeyError: it exists."""
        with self.lock:
            made = clone(made)
            metadata = made["metadata"]
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata["creationTimestamp"] = self.clock.stamp()
            if resource in ("jobs", "pods", "networkpolicies"):
                metadata["generation"] = 1
            key = _key(resource, made)
            objects = self._objects.setdefault(resource, {})
            if key in objects:
                raise KeyError(key)
            return self._write(resource, key, None, made)

    def edit(self, resource: str, found: Object, change: Callable[[Object], None]) -> Object | None:
        """Apply `change` to the newest version; None if it is gone, or goes by this."""
        with self.lock:
            old = self._objects.get(resource, {}).get(_key(resource, found))
            if old is None or old["metadata"]["uid"] != found["metadata"]["uid"]:
                return None
            new = clone(old)
            change(new)
            return self.put(resource, new)

    def put(self, resource: str, new: Object) -> Object | None:
        """Replace an object; it goes if nothing holds it any more."""
        with self.lock:
            key = _key(resource, new)
            old = self._objects[resource][key]
            if _finished_going(resource, new):
                self.remove(resource, new)
                return None
            if new == old:
                return old
            if new.get("spec") != old.get("spec") and "generation" in old["metadata"]:
                new["metadata"]["generation"] = old["metadata"]["generation"] + 1
            return self._write(resource, key, old, new)

    def remove(self, resource: str, found: Object) -> None:
        """Without further ado."""
        with self.lock:
            old = self._objects[resource].pop(_key(resource, found), None)
            if old is not None:
                self.version += 1
                self._record(Change(self.version, resource, old, None))

    def since(self, version: int, resource: str) -> Iterator[Change]:
        """Changes after a version; the caller holds the lock."""
        newer = []
        for change in reversed(self.history):
            if change.version <= version:
                break
            if change.resource == resource:
                newer.append(change)
        return reversed(newer)

    def compact(self) -> None:
        """Forget history: whoever asks for an older version is told 410 Gone."""
        with self.lock:
            self.version += 1
            self.history.clear()
            self.oldest = self.version

    def _write(
        self, resource: str, key: tuple[str, str], old: Object | None, new: Object
    ) -> Object:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self._objects[resource][key] = new
        self._record(Change(self.version, resource, old, new))
        return new

    def _record(self, change: Change) -> None:
        self.history.append(change)
        while len(self.history) > 20_000:
            self.oldest = self.history.popleft().version
        self.changed.notify_all()


def clone(value: Object) -> Object:
    """A copy that shares nothing."""
    return json.loads(json.dumps(value)) if value.keys() <= _JSON_TOP else copy.deepcopy(value)


_JSON_TOP = {"apiVersion", "kind", "metadata", "spec", "status", "data", "type", "stringData"}


def _room(resource: str, namespace: str | None) -> str:
    return "" if resource in CLUSTER_WIDE else namespace or ""


def _key(resource: str, found: Object) -> tuple[str, str]:
    metadata = found["metadata"]
    return _room(resource, metadata.get("namespace")), metadata["name"]


def _finished_going(resource: str, found: Object) -> bool:
    metadata = found["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    return resource != "pods" or metadata.get("deletionGracePeriodSeconds") == 0
