"""Stories that the stand-in does not act out; the others are in the contract suite."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.server.launchers.kubernetes.story import Chapter, Scene, tell

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BORN = "2026-01-01T11:59:00Z"


def thing(uid: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "creationTimestamp": BORN}, **more}


def event(about: str, reason: str, message: str, component: str = "kubelet") -> dict[str, Any]:
    return {
        "metadata": {"name": reason, "creationTimestamp": BORN, "resourceVersion": "7"},
        "involvedObject": {"uid": about}, "reason": reason, "message": message,
        "reportingComponent": component, "lastTimestamp": BORN,
    }  # fmt: skip


def chapter(
    *events: dict[str, Any],
    pods: tuple[dict[str, Any], ...] = (),
    job: dict[str, Any] | None = None,
) -> Chapter:
    scene = Scene(
        job=thing("job", spec={}, status=job or {}), pods=pods, events=events, nodes=(),
        pool=Pool(name="p"), expected=1, now=NOW,
    )  # fmt: skip
    return tell(scene)


def pod(node: str | None = None, **status: Any) -> dict[str, Any]:
    return thing("pod", spec={"nodeName": node}, status={"phase": "Pending", **status})


FAILED = {"phase": "Failed"}
BACKOFF = {
    "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
                    "message": "Job has reached the specified backoff limit"}]
}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        (chapter(event("pod", "FailedScheduling", "incompatible with nodepool gpu", "karpenter"),
                 pods=(pod(),)), "provisioning.refused", "incompatible with nodepool gpu"),
        (chapter(event("pod", "FailedScheduling", "0/3 nodes are available", "default-scheduler"),
                 pods=(pod(),)), "provisioning", "waiting for a machine"),
        (chapter(event("pod", "Nominated", "Pod should schedule on nodeclaim/a", "karpenter"),
                 pods=(pod(),)), "provisioning.scaling", "nodeclaim/a"),
        (chapter(event("pod", "FailedMount", "timed out waiting for the volume"),
                 pods=(pod("n"),)), "starting.failed", "volume cannot be mounted"),
        (chapter(event("job", "FailedCreate", "exceeded quota: pods=1")),
         "provisioning.refused", "Check the namespace's quota"),
        (chapter(pods=(pod("n", **FAILED, reason="Evicted", message="disk pressure"),)),
         "interrupted", 'evicted: "disk pressure"'),
        (chapter(pods=(pod("n", **FAILED),), job=BACKOFF), "releasing.failed", "failed too often"),
        (chapter(), "provisioning", "waiting for a machine"),
    ],
)  # fmt: skip
def test_what_is_told(told: Chapter, code: str, words: str) -> None:
    assert told.code == code
    assert words in told.text
    assert told.event().code == code


def test_long_words_of_the_cluster_are_cut() -> None:
    told = chapter(event("pod", "FailedScaleUp", "x" * 5000), pods=(pod(),))
    assert len(told.event().text) <= 300
    assert "…" in told.text
