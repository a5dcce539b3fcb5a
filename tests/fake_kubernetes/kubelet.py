"""The nodes' agent: pulls, starts, watches and ends containers, and says so in pods' status."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from fake_kubernetes.containers import ConfigError, Container
from fake_kubernetes.events import record
from fake_kubernetes.store import Object, Store

_TERMINAL = ("Succeeded", "Failed")
MISSING_IMAGE = "no-such"


class Kubelet:
    """Agents of all nodes.

    Attributes:
        pull_s: how long an image takes.
        lag_s: how long a pod is said to run whose container has ended.
        starting: told each pod whose container starts.
        out_of_memory: uids of pods whose end is to be reported as OOMKilled.
    """

    def __init__(self, store: Store, folder: Path, host: Mapping[str, str]) -> None:
        self.store, self.folder, self.host = store, folder, host
        self.pull_s, self.lag_s = 1.0, 0.0
        self.starting: list[Callable[[Object], None]] = []
        self.out_of_memory: set[str] = set()
        self.containers: dict[str, Container] = {}
        self.started: list[str] = []
        self._pulling: dict[str, datetime] = {}
        self._doomed: dict[str, datetime] = {}
        self._ended: dict[str, tuple[datetime, str]] = {}

    def reconcile(self) -> None:
        """One look at every pod that has a node."""
        alive = set()
        for pod in self.store.all("pods"):
            uid = pod["metadata"]["uid"]
            alive.add(uid)
            node = self.store.find("nodes", None, pod["spec"].get("nodeName", ""))
            if node is None or not ready(node):
                continue
            if pod["status"]["phase"] in _TERMINAL:
                self._gone(pod)
            elif uid in self._ended:
                self._say_ended(pod)
            elif uid in self.containers:
                self._watch(pod)
            elif "deletionTimestamp" in pod["metadata"]:
                self._end(pod, 143, "Error")
            else:
                self._begin(pod)
        for uid in set(self.containers) - alive:
            self.containers.pop(uid).clean()

    def kill(self, pod: Object, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal from outside."""
        container = self.containers.get(pod["metadata"]["uid"])
        if container is not None:
            container.signal(number)

    def logs(self, pod: Object) -> bytes:
        """Return the container's log."""
        path = self.folder / pod["metadata"]["uid"] / "log"
        return path.read_bytes() if path.exists() else b""

    def close(self) -> None:
        """End everything."""
        for container in self.containers.values():
            container.clean()
            container.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, pod: Object) -> None:
        uid, image = pod["metadata"]["uid"], pod["spec"]["containers"][0]["image"]
        now = self.store.clock.now()
        if uid not in self._pulling:
            self._pulling[uid] = now
            self._waiting(pod, "ContainerCreating", "")
            self._say(pod, "Pulling", f'Pulling image "{image}"')
            return
        if now < self._pulling[uid] + timedelta(seconds=self.pull_s):
            return
        if MISSING_IMAGE in image:
            self._no_image(pod, image, now - self._pulling[uid])
            return
        try:
            folder = self.folder / uid
            shutil.rmtree(folder, ignore_errors=True)
            self.containers[uid] = Container(self.store, pod, folder, self.host)
        except ConfigError as error:
            self._waiting(pod, "CreateContainerConfigError", str(error))
            self._say(pod, "Failed", f"Error: {error}", warning=True)
            return
        except OSError as error:
            self._end(pod, 128, "StartError", str(error))
            return
        self.started.append(uid)
        for told in self.starting:
            told(pod)
        self._say(pod, "Started", "Started container worker")
        self.store.edit("pods", pod, lambda new: _running(new, self.store.clock.stamp()))

    def _say_ended(self, pod: Object) -> None:
        due, phase = self._ended[pod["metadata"]["uid"]]
        if self.store.clock.now() >= due:
            self.store.edit("pods", pod, lambda new: new["status"].update(phase=phase))

    def _no_image(self, pod: Object, image: str, waited: timedelta) -> None:
        words = f'Failed to pull image "{image}": not found'
        backing_off = waited > timedelta(seconds=self.pull_s + 5)
        reason = "ImagePullBackOff" if backing_off else "ErrImagePull"
        self._waiting(pod, reason, f'Back-off pulling image "{image}"' if backing_off else words)
        self._say(pod, "Failed", words, warning=True)

    def _watch(self, pod: Object) -> None:
        uid, container = pod["metadata"]["uid"], self.containers[pod["metadata"]["uid"]]
        code = container.exit_code()
        if code is not None:
            killed = uid in self.out_of_memory
            reason = "OOMKilled" if killed else "Error" if code else "Completed"
            self._end(pod, code, reason)
        elif "deletionTimestamp" in pod["metadata"]:
            self._terminate(pod, container, pod["metadata"]["deletionGracePeriodSeconds"])

    def _terminate(self, pod: Object, container: Container, grace_s: float) -> None:
        uid, now = pod["metadata"]["uid"], self.store.clock.now()
        due = now + timedelta(seconds=grace_s)
        if uid not in self._doomed:
            self._doomed[uid] = due
            self._say(pod, "Killing", "Stopping container worker")
            container.signal(signal.SIGTERM)
        self._doomed[uid] = min(due, self._doomed[uid])
        if now >= self._doomed[uid]:
            container.signal(signal.SIGKILL)

    def _end(self, pod: Object, code: int, reason: str, message: str = "") -> None:
        container = self.containers.pop(pod["metadata"]["uid"], None)
        if container is not None:
            container.clean()
        now = self.store.clock.stamp()

        phase = "Failed" if code else "Succeeded"
        due = self.store.clock.now() + timedelta(seconds=self.lag_s)
        self._ended[pod["metadata"]["uid"]] = due, phase

        def over(new: Object) -> None:
            if not self.lag_s:
                new["status"]["phase"] = phase
            ended = {"exitCode": code, "reason": reason, "finishedAt": now}
            ended["startedAt"] = started_at(new) or now
            if message:
                ended["message"] = message
            new["status"]["containerStatuses"] = [_status(new, {"terminated": ended}, ready=False)]
            _condition(new, "Ready", "False", now)

        self.store.edit("pods", pod, over)

    def _gone(self, pod: Object) -> None:
        """An ended pod that is to be deleted goes once its status was written."""
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata and metadata["deletionGracePeriodSeconds"]:
            self.store.edit(
                "pods", pod, lambda new: new["metadata"].update(deletionGracePeriodSeconds=0)
            )

    def _waiting(self, pod: Object, reason: str, message: str) -> None:
        state = {"reason": reason, **({"message": message} if message else {})}

        def wait(new: Object) -> None:
            new["status"]["containerStatuses"] = [_status(new, {"waiting": state}, ready=False)]

        self.store.edit("pods", pod, wait)

    def _say(self, pod: Object, reason: str, message: str, *, warning: bool = False) -> None:
        record(self.store, pod, "Pod", reason, message, "kubelet", warning=warning)


def ready(node: Object) -> bool:
    """Return True if the node's agent works."""
    return any(
        each["type"] == "Ready" and each["status"] == "True"
        for each in node["status"].get("conditions") or ()
    )


def started_at(pod: Object) -> str | None:
    """Return the start of its container; None if it has not started."""
    states = pod["status"].get("containerStatuses") or ()
    return (states[0]["state"].get("running") or {}).get("startedAt") if states else None


def _running(pod: Object, now: str) -> None:
    status = pod["status"]
    status |= {"phase": "Running", "startTime": now, "podIP": "127.0.0.1", "hostIP": "127.0.0.1"}
    status["containerStatuses"] = [_status(pod, {"running": {"startedAt": now}}, ready=True)]
    _condition(pod, "Ready", "True", now)


def _status(pod: Object, state: Object, *, ready: bool) -> Object:
    container = pod["spec"]["containers"][0]
    return {
        "name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
        "restartCount": 0, "started": ready, "state": state,
    }  # fmt: skip


def _condition(pod: Object, kind: str, value: str, now: str) -> None:
    conditions = pod["status"].setdefault("conditions", [])
    conditions[:] = [each for each in conditions if each["type"] != kind]
    conditions.append({"type": kind, "status": value, "lastTransitionTime": now})
