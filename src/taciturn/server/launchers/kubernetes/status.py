"""What a worker is going through, in words for people: what is waited for, and what would help.

Told from the cluster's own words (conditions, states, events), which name objects and amounts and
never rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from taciturn.server.launchers.kubernetes.client import Object
from taciturn.server.launchers.kubernetes.manifests import given_up
from taciturn.server.launchers.kubernetes.pods import CONTAINER, GPU
from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.server.launchers.kubernetes.times import moment
from taciturn.wire.events import NodeEvent
from taciturn.wire.exits import FINAL
from taciturn.wire.machines import MachineUse

_LONGEST, _QUOTE = 300, 160
_TERMINAL = ("Succeeded", "Failed")
_DRIVER_S = 180.0
_SCALING_S = 900.0  # after as long, an autoscaler has given a machine up that it had promised
_SEEN_S = 30.0  # watches of different kinds are not in step; after as long, they are
_HANGS_S = 30.0  # after its grace, a pod that is to end is not ending any more
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
        start_s: how long the machines may take.
        keeps: what a worker leaves is there for the next one.
    """

    job: Object
    pods: Sequence[Object]
    events: Sequence[Object]
    nodes: Sequence[Object]
    pool: Pool | None
    expected: int
    now: datetime
    start_s: int = 0
    keeps: bool = False

    def node(self, name: str) -> Object | None:
        """A node by its name."""
        return next((each for each in self.nodes if each["metadata"]["name"] == name), None)

    def age_s(self, time: str) -> float:
        """Seconds since then."""
        return (self.now - moment(time)).total_seconds()


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
    if len(current) + _done(scene) < scene.expected:
        chapters.append(Chapter("provisioning", "waiting for the other machines of the job"))
    return min(chapters, key=_rank)


def _done(scene: Scene) -> int:
    return sum(pod["status"].get("phase") == "Succeeded" for pod in scene.pods)


def _rank(chapter: Chapter) -> int:
    """The worst first: what keeps the job waiting is what people want to know."""
    order = ("interrupted", "provisioning", "pulling", "starting", "running", "ending")
    stage = chapter.code.split(".")[0]
    return 2 * order.index(stage) - ("." in chapter.code)


def _of_pod(scene: Scene, pod: Object) -> Chapter:
    if not pod["spec"].get("nodeName"):
        return _waiting_for_node(scene, pod)
    lost = _lost(scene, pod)
    if lost is not None:
        return lost
    state = _state(pod)
    if "terminated" in state:
        return Chapter("ending", f"{_why_ended(pod)}; the cluster has still to take note of it")
    if "deletionTimestamp" in pod["metadata"]:
        return Chapter("ending", "the worker is being ended")
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


def _lost(scene: Scene, pod: Object) -> Chapter | None:
    """Of a pod whose machine says nothing any more, nobody knows what it does."""
    name, metadata = pod["spec"]["nodeName"], pod["metadata"]
    node = scene.node(name)
    going = "deletionTimestamp" in metadata
    if node is None:
        seen = scene.nodes and scene.age_s(metadata["creationTimestamp"]) > _SEEN_S
        if not seen or pod["status"].get("phase") != "Running":
            return None
        return Chapter("interrupted", f"machine {name} is gone; the cluster has still to notice it")
    ready = _readiness(node)
    if (
        ready
        and ready.get("status") != "True"
        and (going or pod["status"].get("phase") == "Running")
    ):
        since = str(ready.get("lastTransitionTime") or "")
        text = f"machine {name} has not reported{f' since {since}' if since else ''}"
        if not going:
            return Chapter("running.unreachable", f"{text}; the worker on it may still run")
        return Chapter(
            "interrupted.unreachable",
            f"{text}, so nobody knows whether the worker on it has ended, and no other one is "
            f"made. Repair it, or if it is off: kubectl delete node {name}",
        )
    if going and scene.age_s(metadata["deletionTimestamp"]) > _HANGS_S:
        return Chapter(
            "interrupted.hangs",
            f"the worker is to end and its pod {metadata['name']} hangs in Terminating on {name}. "
            "Look at the pod's finalizers and at the machine's agent",
        )
    return None


def _readiness(node: Object) -> Object:
    conditions = node["status"].get("conditions") or ()
    return next((each for each in conditions if each["type"] == "Ready"), {})


def said_of(pod: Object) -> str:
    """Why the worker's container does not start; empty where nothing keeps it."""
    return str((_state(pod).get("waiting") or {}).get("message", ""))


def _state(pod: Object) -> Object:
    """Of the worker's own container: others may have been put beside it."""
    found: Object = next(
        (
            each["state"]
            for each in pod["status"].get("containerStatuses") or ()
            if each.get("name", CONTAINER) == CONTAINER
        ),
        {},
    )
    return found


def _waiting_for_node(scene: Scene, pod: Object) -> Chapter:
    refused = _newest(scene.events, _REFUSED, pod) or _newest(
        [each for each in scene.events if _component(each) == "karpenter"],
        ("FailedScheduling",),
        pod,
    )
    coming = _newest(scene.events, _COMING, pod)
    newest = max(filter(None, (refused, coming)), key=_at, default=None)
    if newest is not None and _overtaken(scene, newest):
        newest = None
    if newest is not None and newest is refused:
        return Chapter(
            "provisioning.refused",
            f"no machine can be added: {_quoted(_said(newest))}. Raise the cloud's quota or "
            "the node group's maximum, or ask for another pool",
        )
    held = _held_up(scene)
    if held is not None:
        return held
    if newest is not None and scene.age_s(f"{_at(newest)[0]}Z") <= _SCALING_S:
        said = _quoted(_said(newest))
        return Chapter("provisioning.scaling", f"waiting for a machine: autoscaler says {said}")
    why = _unschedulable(pod)
    if why:
        return Chapter("provisioning", f"waiting for a machine: {_quoted(why)}")
    return Chapter("provisioning", "waiting for a machine")


def _overtaken(scene: Scene, event: Object) -> bool:
    """Whether a machine has come since this was said of it."""
    said = _at(event)[0]
    return any(each["metadata"]["creationTimestamp"][:19] >= said for each in _machines(scene))


def _machines(scene: Scene) -> list[Object]:
    """Those of the pool that have come since the job is there, and stay."""
    if scene.pool is None:
        return []
    born, wanted = scene.job["metadata"]["creationTimestamp"], scene.pool.node_selector.items()
    return [
        node
        for node in scene.nodes
        if wanted <= (node["metadata"].get("labels") or {}).items()
        and node["metadata"]["creationTimestamp"] >= born
        and "deletionTimestamp" not in node["metadata"]
    ]


def _held_up(scene: Scene) -> Chapter | None:
    """A machine of the pool has come, and cannot be used yet."""
    for node in _machines(scene):
        name = node["metadata"]["name"]
        age_s = scene.age_s(node["metadata"]["creationTimestamp"])
        ready = _readiness(node)
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
        gpus = scene.pool is not None and scene.pool.gpus
        if gpus and not int(node["status"].get("allocatable", {}).get(GPU, 0)):
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
    if _done(scene) >= scene.expected:
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
    then = "goes on from the last checkpoint, if there is one" if scene.keeps else "begins anew"
    return Chapter("interrupted", f"{_why_ended(newest)}; another worker {then}")


def _over(scene: Scene) -> Chapter | None:
    left = [pod for pod in scene.pods if pod["status"].get("phase") not in _TERMINAL]
    for each in scene.job.get("status", {}).get("conditions") or ():
        if each["status"] != "True" or each["type"] not in ("Complete", "Failed"):
            continue
        if each["type"] == "Complete":
            return Chapter("releasing", _DONE)
        return Chapter("releasing.failed", f"{_why_failed(scene, each)}; its machine is released")
    if "deletionTimestamp" in scene.job["metadata"]:
        if not left:
            return Chapter("releasing", "the worker is ended; its machine is released")
        lost = (_lost(scene, pod) for pod in left if pod["spec"].get("nodeName"))
        ending = Chapter("releasing", "the worker is being ended")
        return next((each for each in lost if each is not None), ending)
    if given_up(scene.job):
        return Chapter("provisioning.given_up", f"given up: {_too_late(scene)}")
    return None


def _too_late(scene: Scene) -> str:
    return (
        f"not all machines came within {scene.start_s} s. Ask for fewer or other GPUs, or raise "
        "the pool's quota"
    )


def _why_failed(scene: Scene, condition: Object) -> str:
    reason = condition.get("reason", "")
    if given_up(scene.job):
        return _too_late(scene)
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
    ended = _state(pod).get("terminated") or {}
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
    if code == 0:
        return "the worker is done"
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
