"""Status of a worker, in words for people: what it waits for, and what would help.

Made from the cluster's own words (conditions, states, events), which name objects and amounts and
never rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from taciturn.server.launchers.kubernetes.client import Object, parse_time
from taciturn.server.launchers.kubernetes.manifests import given_up
from taciturn.server.launchers.kubernetes.pods import CONTAINER, GPU
from taciturn.server.launchers.kubernetes.settings import Pool
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
class WorkerStatus:
    """Status of a worker.

    Attributes:
        code: stable, for programs: `provisioning.scaling`, `pulling`, `running` ...
        text: what happens, and where something is wrong, what to do about it.
        use: of a machine, where that has ended.
    """

    code: str
    text: str
    use: MachineUse | None = None

    def event(self) -> NodeEvent:
        """Event that is shown with the job."""
        return NodeEvent(code=self.code, text=self.text[:_LONGEST], use=self.use)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """Facts about one worker that its status follows from.

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
        return next((item for item in self.nodes if item["metadata"]["name"] == name), None)

    def age_s(self, time: str) -> float:
        """Seconds since then."""
        return (self.now - parse_time(time)).total_seconds()


def status_of(facts: WorkerFacts) -> WorkerStatus:
    """The chapter that a worker is in."""
    over = _over(facts)
    if over is not None:
        return over
    if facts.job["spec"].get("suspend"):
        return WorkerStatus("queued", "waiting for its turn in the cluster's queue")
    current = [pod for pod in facts.pods if pod["status"].get("phase") not in _TERMINAL]
    if not current:
        return _between(facts)
    chapters = [_of_pod(facts, pod) for pod in current]
    if len(current) + _n_succeeded(facts) < facts.expected:
        chapters.append(WorkerStatus("provisioning", "waiting for the other machines of the job"))
    return min(chapters, key=_rank)


def _n_succeeded(facts: WorkerFacts) -> int:
    return sum(pod["status"].get("phase") == "Succeeded" for pod in facts.pods)


def _rank(chapter: WorkerStatus) -> int:
    """The worst first: what keeps the job waiting is what people want to know."""
    order = ("interrupted", "provisioning", "pulling", "starting", "running", "ending")
    stage = chapter.code.split(".")[0]
    return 2 * order.index(stage) - ("." in chapter.code)


def _of_pod(facts: WorkerFacts, pod: Object) -> WorkerStatus:
    if not pod["spec"].get("nodeName"):
        return _waiting_for_node(facts, pod)
    lost_status = _status_if_lost(facts, pod)
    if lost_status is not None:
        return lost_status
    state = _state(pod)
    if "terminated" in state:
        return WorkerStatus(
            "ending", f"{_why_ended(pod)}; the cluster has still to take note of it"
        )
    if "deletionTimestamp" in pod["metadata"]:
        return WorkerStatus("ending", "the worker is being ended")
    if "running" in state:
        return WorkerStatus("running", "running")
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE:
        return WorkerStatus(
            "pulling.failed",
            f"the worker's image cannot be pulled: {_quoted(message or reason)}. Check the image's "
            "name, the registry and imagePullSecrets",
        )
    if reason in _CONTAINER:
        return WorkerStatus(
            "starting.failed",
            f"the worker cannot start: {_quoted(message or reason)}. Make what it names, or "
            "correct its name in the launcher's settings",
        )
    failed = _newest(facts.events, ("FailedMount", "FailedAttachVolume"), pod)
    if failed is not None:
        return WorkerStatus(
            "starting.failed",
            f"a volume cannot be mounted: {_quoted(_message(failed))}. Check the claim or Secret",
        )
    return WorkerStatus("pulling", "pulling the worker's image")


def _status_if_lost(facts: WorkerFacts, pod: Object) -> WorkerStatus | None:
    """Status of a pod whose machine has gone silent: nobody knows what it does."""
    name, metadata = pod["spec"]["nodeName"], pod["metadata"]
    node = facts.node(name)
    going = "deletionTimestamp" in metadata
    if node is None:
        is_gone = facts.nodes and facts.age_s(metadata["creationTimestamp"]) > _SEEN_S
        if not is_gone or pod["status"].get("phase") != "Running":
            return None
        return WorkerStatus(
            "interrupted", f"machine {name} is gone; the cluster has still to notice it"
        )
    ready = _readiness(node)
    if (
        ready
        and ready.get("status") != "True"
        and (going or pod["status"].get("phase") == "Running")
    ):
        since = str(ready.get("lastTransitionTime") or "")
        text = f"machine {name} has not reported{f' since {since}' if since else ''}"
        if not going:
            return WorkerStatus("running.unreachable", f"{text}; the worker on it may still run")
        return WorkerStatus(
            "interrupted.unreachable",
            f"{text}, so nobody knows whether the worker on it has ended, and no other one is "
            f"made. Repair it, or if it is off: kubectl delete node {name}",
        )
    if going and facts.age_s(metadata["deletionTimestamp"]) > _HANGS_S:
        return WorkerStatus(
            "interrupted.hangs",
            f"the worker is to end and its pod {metadata['name']} hangs in Terminating on {name}. "
            "Look at the pod's finalizers and at the machine's agent",
        )
    return None


def _readiness(node: Object) -> Object:
    conditions = node["status"].get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == "Ready"), {})


def waiting_message(pod: Object) -> str:
    """Reason why the worker's container does not start; empty where nothing keeps it."""
    return str((_state(pod).get("waiting") or {}).get("message", ""))


def _state(pod: Object) -> Object:
    """State of the worker's own container: others may have been put beside it."""
    state: Object = next(
        (
            container["state"]
            for container in pod["status"].get("containerStatuses") or ()
            if container.get("name", CONTAINER) == CONTAINER
        ),
        {},
    )
    return state


def _waiting_for_node(facts: WorkerFacts, pod: Object) -> WorkerStatus:
    refusal = _newest(facts.events, _REFUSED, pod) or _newest(
        [event for event in facts.events if _component(event) == "karpenter"],
        ("FailedScheduling",),
        pod,
    )
    coming = _newest(facts.events, _COMING, pod)
    newest = max(filter(None, (refusal, coming)), key=_at, default=None)
    if newest is not None and _overtaken(facts, newest):
        newest = None
    if newest is not None and newest is refusal:
        return WorkerStatus(
            "provisioning.refused",
            f"no machine can be added: {_quoted(_message(newest))}. Raise the cloud's quota or "
            "the node group's maximum, or ask for another pool",
        )
    held_up = _held_up(facts)
    if held_up is not None:
        return held_up
    if newest is not None and facts.age_s(f"{_at(newest)[0]}Z") <= _SCALING_S:
        message = _quoted(_message(newest))
        return WorkerStatus(
            "provisioning.scaling", f"waiting for a machine: autoscaler says {message}"
        )
    why = _unschedulable(pod)
    if why:
        return WorkerStatus("provisioning", f"waiting for a machine: {_quoted(why)}")
    return WorkerStatus("provisioning", "waiting for a machine")


def _overtaken(facts: WorkerFacts, event: Object) -> bool:
    """True if a machine has come since this event."""
    said_at = _at(event)[0]
    return any(
        machine["metadata"]["creationTimestamp"][:19] >= said_at for machine in _machines(facts)
    )


def _machines(facts: WorkerFacts) -> list[Object]:
    """Machines of the pool that have come since the job is there, and stay."""
    if facts.pool is None:
        return []
    born, wanted_labels = (
        facts.job["metadata"]["creationTimestamp"],
        facts.pool.node_selector.items(),
    )
    return [
        node
        for node in facts.nodes
        if wanted_labels <= (node["metadata"].get("labels") or {}).items()
        and node["metadata"]["creationTimestamp"] >= born
        and "deletionTimestamp" not in node["metadata"]
    ]


def _held_up(facts: WorkerFacts) -> WorkerStatus | None:
    """A machine of the pool has come, and cannot be used yet."""
    for node in _machines(facts):
        name = node["metadata"]["name"]
        age_s = facts.age_s(node["metadata"]["creationTimestamp"])
        ready = _readiness(node)
        if ready.get("status") != "True":
            message = _quoted(ready.get("message") or "its agent has not reported")
            hint = (
                ". Look at the node's events and at the cloud's console"
                if age_s > _DRIVER_S
                else ""
            )
            return WorkerStatus(
                "provisioning.node", f"machine {name} is there and not ready: {message}{hint}"
            )
        gpus = facts.pool is not None and facts.pool.gpus
        if gpus and not int(node["status"].get("allocatable", {}).get(GPU, 0)):
            if age_s <= _DRIVER_S:
                return WorkerStatus(
                    "provisioning.gpu", f"machine {name} is ready; its GPU is set up"
                )
            return WorkerStatus(
                "provisioning.gpu.missing",
                f"machine {name} is ready and offers no {GPU}: install the GPU driver and NVIDIA's "
                "device plugin on the pool, or wait if they are still being installed",
            )
    return None


def _between(facts: WorkerFacts) -> WorkerStatus:
    """Status without a pod of a Job that is not over: another pod comes, or its end is due."""
    if _n_succeeded(facts) >= facts.expected:
        return WorkerStatus("releasing", _DONE)
    failed_pods = [pod for pod in facts.pods if pod["status"].get("phase") == "Failed"]
    newest = max(
        failed_pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None
    )
    if newest is None:
        refusal = _newest(facts.events, ("FailedCreate",), facts.job)
        if refusal is not None:
            return WorkerStatus(
                "provisioning.refused",
                f"the cluster makes no pod: {_quoted(_message(refusal))}. Check the namespace's "
                "quota and pod security level",
            )
        return WorkerStatus("provisioning", "waiting for a machine")
    next_step = (
        "goes on from the last checkpoint, if there is one" if facts.keeps else "begins anew"
    )
    return WorkerStatus("interrupted", f"{_why_ended(newest)}; another worker {next_step}")


def _over(facts: WorkerFacts) -> WorkerStatus | None:
    live_pods = [pod for pod in facts.pods if pod["status"].get("phase") not in _TERMINAL]
    for condition in facts.job.get("status", {}).get("conditions") or ():
        if condition["status"] != "True" or condition["type"] not in ("Complete", "Failed"):
            continue
        if condition["type"] == "Complete":
            return WorkerStatus("releasing", _DONE)
        return WorkerStatus(
            "releasing.failed", f"{_why_failed(facts, condition)}; its machine is released"
        )
    if "deletionTimestamp" in facts.job["metadata"]:
        if not live_pods:
            return WorkerStatus("releasing", "the worker is ended; its machine is released")
        lost_statuses = (
            _status_if_lost(facts, pod) for pod in live_pods if pod["spec"].get("nodeName")
        )
        ending = WorkerStatus("releasing", "the worker is being ended")
        return next((condition for condition in lost_statuses if condition is not None), ending)
    if given_up(facts.job):
        return WorkerStatus("provisioning.given_up", f"given up: {_too_late(facts)}")
    return None


def _too_late(facts: WorkerFacts) -> str:
    return (
        f"not all machines came within {facts.start_s} s. Ask for fewer or other GPUs, or raise "
        "the pool's quota"
    )


def _why_failed(facts: WorkerFacts, condition: Object) -> str:
    reason = condition.get("reason", "")
    if given_up(facts.job):
        return _too_late(facts)
    if reason == "DeadlineExceeded":
        return "the time limit of the job's worker ran out; raise the deadline"
    if reason == "PodFailurePolicy":
        return "the worker refused to go on, and is not started again"
    failed_pods = [pod for pod in facts.pods if pod["status"].get("phase") == "Failed"]
    why = (
        _why_ended(failed_pods[-1]) if failed_pods else _quoted(condition.get("message") or reason)
    )
    return f"the worker failed too often, at last because {why}"


def _why_ended(pod: Object) -> str:
    status = pod["status"]
    was_disrupted = any(
        condition["type"] == "DisruptionTarget" and condition["status"] == "True"
        for condition in status.get("conditions") or ()
    )
    if was_disrupted:
        return "the machine was taken away"
    termination = _state(pod).get("terminated") or {}
    if termination.get("reason") == "OOMKilled":
        return (
            "the worker ran out of the machine's memory (choose a pool with more, or a smaller "
            "microbatch_tokens)"
        )
    if status.get("reason") == "Evicted":
        return f"the worker was evicted: {_quoted(status.get('message', ''))}"
    code = termination.get("exitCode")
    if code in FINAL:
        return "the worker refused to go on"
    if code == 0:
        return "the worker is done"
    return "the worker ended" if code is None else f"the worker ended with code {code}"


def _unschedulable(pod: Object) -> str:
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    return ""


def _newest(events: Sequence[Object], reasons: Sequence[str], about: Object) -> Object | None:
    uid = about["metadata"]["uid"]
    matching = [
        event
        for event in events
        if event.get("reason") in reasons and event["involvedObject"].get("uid") == uid
    ]
    return max(matching, key=_at, default=None)


def _message(event: Object) -> str:
    """An event may be without a message."""
    return str(event.get("message") or event["reason"])


def _component(event: Object) -> str:
    return str(event.get("reportingComponent") or (event.get("source") or {}).get("component"))


def _at(event: Object) -> tuple[str, int]:
    """Time of the last event of a series; versions tell apart those of one second."""
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
    about = [event for uid in uids for event in events.get(uid, {}).values()]
    return sorted(about, key=_at)
