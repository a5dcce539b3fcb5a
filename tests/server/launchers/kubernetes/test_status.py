"""Stories that the fake cluster does not act out; the others are in the contract suite."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.server.launchers.kubernetes.status import WorkerFacts, WorkerStatus, status_of

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
    about: dict[str, Any] | None = None,
    **more: Any,
) -> WorkerStatus:
    made = thing("job", spec={}, status=job or {})
    made["metadata"] |= about or {}
    told = {"nodes": (), "pool": Pool(name="p"), "expected": 1, "now": NOW, **more}
    return status_of(WorkerFacts(job=made, pods=pods, events=events, **told))


def node(name: str, born: str = BORN, ready: str = "True", **about: Any) -> dict[str, Any]:
    made = thing(name, status={"conditions": [
        {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T11:50:00Z"}
    ]})  # fmt: skip
    made["metadata"] |= {"creationTimestamp": born, **about}
    return made


def running(uid: str = "pod", on: str = "n", **about: Any) -> dict[str, Any]:
    states = [
        {"name": "a-proxy", "state": {"terminated": {"exitCode": 9}}},
        {"name": "worker", "state": {"running": {}}},
    ]
    made = thing(
        uid, spec={"nodeName": on}, status={"phase": "Running", "containerStatuses": states}
    )
    made["metadata"] |= about
    return made


def ended(code: int, phase: str = "Running") -> dict[str, Any]:
    made = running()
    made["status"] |= {"phase": phase, "containerStatuses": [
        {"name": "worker", "state": {"terminated": {"exitCode": code}}}
    ]}  # fmt: skip
    return made


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
def test_what_is_told(told: WorkerStatus, code: str, words: str) -> None:
    assert told.code == code
    assert words in told.text
    assert told.event().code == code


EARLY, LATE = "2026-01-01T11:40:00Z", "2026-01-01T11:59:30Z"
SCALING = event("pod", "TriggeredScaleUp", "pod triggered scale-up: p 0->1", "cluster-autoscaler")
REFUSED = event("pod", "NotTriggerScaleUp", "max node group size reached", "cluster-autoscaler")
OLD = {**SCALING, "lastTimestamp": EARLY}
GIVEN_UP = {"annotations": {"taciturn.dev/given-up": "true"}}
TOO_LATE = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        # The worker's own container counts, not the first one; here nodes may not be seen.
        (chapter(pods=(running(),)), "running", "running"),
        (chapter(pods=(ended(0),)), "ending", "the worker is done"),
        (chapter(pods=(ended(9),)), "ending", "ended with code 9"),
        (chapter(pods=(ended(0, "Succeeded"), running("two")), expected=2), "running", "running"),
        (chapter(pods=(ended(9, "Failed"), running("two")), expected=2), "provisioning",
         "the other machines"),
        (chapter(pods=(ended(0, "Succeeded"), ended(9, "Failed")), expected=2), "interrupted",
         "code 9"),
        # What the next one goes on from.
        (chapter(pods=(ended(9, "Failed"),)), "interrupted", "another worker begins anew"),
        (chapter(pods=(ended(9, "Failed"),), keeps=True), "interrupted", "the last checkpoint"),
        # A promise of a machine ends when it is there, and after a while.
        (chapter(SCALING, pods=(pod(),)), "provisioning.scaling", "0->1"),
        (chapter(SCALING, pods=(pod(),), nodes=(node("n", LATE),)), "provisioning", "a machine"),
        (chapter(OLD, pods=(pod(),)), "provisioning", "waiting for a machine"),
        (chapter(REFUSED, pods=(pod(),), nodes=(node("n", LATE),)), "provisioning", "a machine"),
        (chapter(REFUSED, {**SCALING, "lastTimestamp": LATE}, pods=(pod(),)),
         "provisioning.scaling", "0->1"),
        # Given up: its remedy is another one than that of the deadline.
        (chapter(pods=(pod(),), about=GIVEN_UP, start_s=60), "provisioning.given_up", "60 s"),
        (chapter(about=GIVEN_UP, job=TOO_LATE, start_s=60), "releasing.failed", "other GPUs"),
        (chapter(job=TOO_LATE), "releasing.failed", "raise the deadline"),
        # A machine that says nothing.
        (chapter(pods=(running(),), nodes=(node("n", ready="Unknown"),)), "running.unreachable",
         "has not reported since 2026-01-01T11:50:00Z"),
        (chapter(pods=(running(deletionTimestamp=EARLY),), nodes=(node("n", ready="Unknown"),)),
         "interrupted.unreachable", "kubectl delete node n"),
        (chapter(pods=(running(deletionTimestamp=EARLY),), nodes=(node("n"),)),
         "interrupted.hangs", "hangs in Terminating on n"),
        (chapter(pods=(running(deletionTimestamp="2026-01-01T12:00:20Z"),), nodes=(node("n"),)),
         "ending", "being ended"),
        (chapter(pods=(running(),), nodes=(node("other"),)), "interrupted", "machine n is gone"),
        # Its machine is released when nothing of it is left there, and not before.
        (chapter(pods=(running(deletionTimestamp=EARLY),), about={"deletionTimestamp": EARLY},
                 nodes=(node("n", ready="Unknown"),)), "interrupted.unreachable", "not reported"),
        (chapter(pods=(running(),), about={"deletionTimestamp": EARLY}), "releasing", "being"),
        (chapter(about={"deletionTimestamp": EARLY}), "releasing", "its machine is released"),
    ],
)  # fmt: skip
def test_what_is_told_is_so(told: WorkerStatus, code: str, words: str) -> None:
    assert told.code == code
    assert words in told.text
    assert told.event().text == told.text


def test_long_words_of_the_cluster_are_cut() -> None:
    told = chapter(event("pod", "FailedScaleUp", "x" * 5000), pods=(pod(),))
    assert len(told.event().text) <= 300
    assert "…" in told.text
