"""Events, as the controllers write them."""

from __future__ import annotations

import uuid

from fake_kubernetes.store import Object, Store


def record(
    store: Store, about: Object, kind: str, reason: str, message: str, source: str,
    *, warning: bool = False,
) -> None:  # fmt: skip
    """One event about an object; the same again raises its count."""
    metadata, now = about["metadata"], store.clock.stamp()
    namespace = metadata.get("namespace", "default")
    for each in store.all("events", namespace):
        same = each["involvedObject"]["uid"] == metadata["uid"]
        if same and (each["reason"], each["message"]) == (reason, message):

            def again(new: Object) -> None:
                if "eventTime" in new:
                    count = new.get("series", {"count": 1})["count"] + 1
                    new["series"] = {"count": count, "lastObservedTime": _micro(now)}
                    return
                new["count"] += 1
                new["lastTimestamp"] = now

            store.edit("events", each, again)
            return
    store.add("events", {
        "kind": "Event", "apiVersion": "v1",
        "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
        "involvedObject": {
            "kind": kind, "name": metadata["name"], "namespace": metadata.get("namespace", ""),
            "uid": metadata["uid"], "apiVersion": about.get("apiVersion", "v1"),
        },
        "reason": reason, "message": message, "type": "Warning" if warning else "Normal",
        **_dated(source, now),
    })  # fmt: skip


def _dated(source: str, now: str) -> Object:
    """Return an event's source and times: the scheduler's are of events.k8s.io, which core/v1 shows
    without the times and counts of its own."""
    if source != "default-scheduler":
        return {
            "source": {"component": source}, "reportingComponent": source, "reportingInstance": "",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
    return {
        "source": {}, "reportingComponent": source, "reportingInstance": f"{source}-0",
        "action": "Scheduling", "eventTime": _micro(now),
        "firstTimestamp": None, "lastTimestamp": None,
    }  # fmt: skip


def _micro(stamp: str) -> str:
    return stamp.replace("Z", ".000000Z")
