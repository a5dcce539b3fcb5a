"""What a worker is going through, in words for people: what is waited for, and what would help.

Told from the cluster's own words (conditions, states, events), which name objects and amounts and
never rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from taciturn.server.launchers.kubernetes.cluster import Object
from taciturn.server.launchers.kubernetes.pods import GPU
from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.server.launchers.kubernetes.times import moment
from taciturn.wire.events import NodeEvent
from taciturn.wire.exits import FINAL
from taciturn.wire.machines import MachineUse

_LONGEST, _QUOTE = 300, 160
_TERMINAL = ("Succeeded", "Failed")
_DRIVER_S = 180.0
_DONE = "the worker is done; its machine is released"

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_REFUSED = ("FailedScaleUp", "NotTriggerScaleUp")
_COMING = ("TriggeredScaleUp", "Nominated")


@dataclass(frozen=True, slots=True)
class Chapter:
    """Where a worker is.

    Attributes:
        code: stable, for programs: `provisioning.scaling`, `pulling`, `running` ...
        text: what happens, and where something is wrong, what to do about it.
        use: of a machine, where that has ended.
    """

    code: str
    text: str
    use: MachineUse | None = None

    def event(self) -> NodeEvent:
        """As it is shown with the job."""
        return NodeEvent(code=self.code, text=self.text[:_LONGEST], use=self.use)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known of one worker.

    Attributes:
        events: of its Job and pods, oldest first.
        nodes: of the whole cluster; empty where they may not be seen.
    """

    job: Object
    pods: Sequence[Object]
    events: Sequence[Object]
    nodes: Sequence[Object]
    pool: Pool | None
    expected: int
    now: datetime


def tell(scene: Scene) -> Chapter:
    """The chapter that a worker is in."""
    over = _over(scene)
    if over is not None:
        return over
    if scene.job["spec"].get("suspend"):
        return Chapter("queued", "waiting for its turn in the cluster's queue")
    current = [pod for pod in scene.pods if pod["status"].get("phase") not in _TERMINAL]
    if not current:
        return _between(scene)
    chapters = [_of_pod(scene, pod) for pod in current]
    if len(current) < scene.expected:
        chapters.append(Chapter("provisioning", "waiting for the other machines of the job"))
    return min(chapters, key=_rank)


def _rank(chapter: Chapter) -> int:
    """The worst first: what keeps the job waiting is what people want to know."""
    order = ("provisioning", "pulling", "starting", "running")
    stage = chapter.code.split(".")[0]
    return 2 * order.index(stage) - ("." in chapter.code)


def _of_pod(scene: Scene, pod: Object) -> Chapter:
    if not pod["spec"].get("nodeName"):
        return _waiting_for_node(scene, pod)
    states = pod["status"].get("containerStatuses") or ()
    state = states[0]["state"] if states else {}
    if "running" in state:
        return Chapter("running", "running")
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE:
        return Chapter(
            "pulling.failed",
            f"the worker's image cannot be pulled: {_quoted(message or reason)}. Check the image's "
            "name, the registry and imagePullSecrets",
        )
    if reason in _CONTAINER:
        return Chapter(
            "starting.failed",
            f"the worker cannot start: {_quoted(message or reason)}. Make what it names, or "
            "correct its name in the launcher's settings",
        )
    failed = _newest(scene.events, ("FailedMount", "FailedAttachVolume"), pod)
    if failed is not None:
        return Chapter(
            "starting.failed",
            f"a volume cannot be mounted: {_quoted(_said(failed))}. Check the claim or Secret",
        )
    return Chapter("pulling", "pulling the worker's image")


def _waiting_for_node(scene: Scene, pod: Object) -> Chapter:
    refused = _newest(scene.events, _REFUSED, pod) or _newest(
        [each for each in scene.events if _component(each) == "karpenter"],
        ("FailedScheduling",),
        pod,
    )
    coming = _newest(scene.events, _COMING, pod)
    if refused is not None and (coming is None or _at(refused) > _at(coming)):
        return Chapter(
            "provisioning.refused",
            f"no machine can be added: {_quoted(_said(refused))}. Raise the cloud's quota or "
            "the node group's maximum, or ask for another pool",
        )
    held = _held_up(scene)
    if held is not None:
        return held
    if coming is not None:
        said = _quoted(_said(coming))
        return Chapter("provisioning.scaling", f"waiting for a machine: autoscaler says {said}")
    why = _unschedulable(pod)
    if why:
        return Chapter("provisioning", f"waiting for a machine: {_quoted(why)}")
    return Chapter("provisioning", "waiting for a machine")


def _held_up(scene: Scene) -> Chapter | None:
    """A machine of the pool has come, and cannot be used yet."""
    if scene.pool is None:
        return None
    born = scene.job["metadata"]["creationTimestamp"]
    for node in scene.nodes:
        labels, metadata = node["metadata"].get("labels") or {}, node["metadata"]
        mine = scene.pool.node_selector.items() <= labels.items()
        if not mine or metadata["creationTimestamp"] < born or "deletionTimestamp" in metadata:
            continue
        name, age_s = (
            metadata["name"],
            (scene.now - moment(metadata["creationTimestamp"])).total_seconds(),
        )
        ready: Object = next(
            (each for each in node["status"].get("conditions") or () if each["type"] == "Ready"), {}
        )
        if ready.get("status") != "True":
            said = _quoted(ready.get("message") or "its agent has not reported")
            hint = (
                ". Look at the node's events and at the cloud's console"
                if age_s > _DRIVER_S
                else ""
            )
            return Chapter(
                "provisioning.node", f"machine {name} is there and not ready: {said}{hint}"
            )
        if scene.pool.gpus and not int(node["status"].get("allocatable", {}).get(GPU, 0)):
            if age_s <= _DRIVER_S:
                return Chapter("provisioning.gpu", f"machine {name} is ready; its GPU is set up")
            return Chapter(
                "provisioning.gpu.missing",
                f"machine {name} is ready and offers no {GPU}: install the GPU driver and NVIDIA's "
                "device plugin on the pool, or wait if they are still being installed",
            )
    return None


def _between(scene: Scene) -> Chapter:
    """No pod, and the Job not over: another one comes, or its end is about to be written."""
    if any(pod["status"].get("phase") == "Succeeded" for pod in scene.pods):
        return Chapter("releasing", _DONE)
    ended = [pod for pod in scene.pods if pod["status"].get("phase") == "Failed"]
    newest = max(ended, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
    if newest is None:
        refused = _newest(scene.events, ("FailedCreate",), scene.job)
        if refused is not None:
            return Chapter(
                "provisioning.refused",
                f"the cluster makes no pod: {_quoted(_said(refused))}. Check the namespace's "
                "quota and pod security level",
            )
        return Chapter("provisioning", "waiting for a machine")
    return Chapter(
        "interrupted", f"{_why_ended(newest)}; another worker goes on from the last checkpoint"
    )


def _over(scene: Scene) -> Chapter | None:
    for each in scene.job.get("status", {}).get("conditions") or ():
        if each["status"] != "True" or each["type"] not in ("Complete", "Failed"):
            continue
        if each["type"] == "Complete":
            return Chapter("releasing", _DONE)
        return Chapter("releasing.failed", f"{_why_failed(scene, each)}; its machine is released")
    if "deletionTimestamp" in scene.job["metadata"]:
        return Chapter("releasing", "the worker is ended; its machine is released")
    return None


def _why_failed(scene: Scene, condition: Object) -> str:
    reason = condition.get("reason", "")
    if reason == "DeadlineExceeded":
        return "the time limit of the job's worker ran out; raise the deadline"
    if reason == "PodFailurePolicy":
        return "the worker refused to go on, and is not started again"
    ended = [pod for pod in scene.pods if pod["status"].get("phase") == "Failed"]
    why = _why_ended(ended[-1]) if ended else _quoted(condition.get("message") or reason)
    return f"the worker failed too often, at last because {why}"


def _why_ended(pod: Object) -> str:
    status = pod["status"]
    taken = any(
        each["type"] == "DisruptionTarget" and each["status"] == "True"
        for each in status.get("conditions") or ()
    )
    if taken:
        return "the machine was taken away"
    states = status.get("containerStatuses") or ()
    ended = (states[0]["state"] if states else {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return (
            "the worker ran out of the machine's memory (choose a pool with more, or a smaller "
            "microbatch_tokens)"
        )
    if status.get("reason") == "Evicted":
        return f"the worker was evicted: {_quoted(status.get('message', ''))}"
    code = ended.get("exitCode")
    if code in FINAL:
        return "the worker refused to go on"
    return "the worker ended" if code is None else f"the worker ended with code {code}"


def _unschedulable(pod: Object) -> str:
    for each in pod["status"].get("conditions") or ():
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return str(each.get("message", ""))
    return ""


def _newest(events: Sequence[Object], reasons: Sequence[str], about: Object) -> Object | None:
    uid = about["metadata"]["uid"]
    found = [
        each
        for each in events
        if each.get("reason") in reasons and each["involvedObject"].get("uid") == uid
    ]
    return max(found, key=_at, default=None)


def _said(event: Object) -> str:
    """An event may be without a message."""
    return str(event.get("message") or event["reason"])


def _component(event: Object) -> str:
    return str(event.get("reportingComponent") or (event.get("source") or {}).get("component"))


def _at(event: Object) -> tuple[str, int]:
    """When it was last said; versions tell apart what one second has."""
    series = event.get("series") or {}
    time = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return (time or event["metadata"]["creationTimestamp"])[:19], int(
        event["metadata"]["resourceVersion"]
    )


def _quoted(text: str) -> str:
    """The cluster's words on one line, and not too many."""
    line = " ".join(text.split()).rstrip(".")
    return f'"{line if len(line) <= _QUOTE else line[: _QUOTE - 1] + "…"}"'


def events_of(events: Mapping[str, Mapping[str, Object]], uids: Sequence[str]) -> list[Object]:
    """All events about these objects."""
    found = [each for uid in uids for each in events.get(uid, {}).values()]
    return sorted(found, key=_at)
