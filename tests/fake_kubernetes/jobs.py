"""The Job controller of 1.36: pods made, counted once, replaced, and a Job's conditions."""

from __future__ import annotations

from datetime import datetime, timedelta

from fake_kubernetes import defaults
from fake_kubernetes.clock import moment, stamp
from fake_kubernetes.events import record
from fake_kubernetes.security import violations
from fake_kubernetes.store import Object, Store, clone

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
_TERMINAL = ("Succeeded", "Failed")


class JobController:
    """Brings Jobs where their specs want them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._failed_at: dict[str, datetime] = {}

    def reconcile(self) -> None:
        """One look at every Job."""
        for job in self.store.all("jobs"):
            self._sync(job)
        for pod in self.store.all("pods"):
            owner = _owner(pod)
            tracked = TRACKING in (pod["metadata"].get("finalizers") or ())
            if tracked and (owner is None or not self._lives(pod, owner)):
                self.store.edit("pods", pod, _untrack)

    def _lives(self, pod: Object, owner: Object) -> bool:
        found = self.store.find("jobs", pod["metadata"]["namespace"], owner["name"])
        return found is not None and found["metadata"]["uid"] == owner["uid"]

    def pods_of(self, job: Object) -> list[Object]:
        """The Job's pods."""
        uid = job["metadata"]["uid"]
        pods = self.store.all("pods", job["metadata"]["namespace"])
        return [pod for pod in pods if (_owner(pod) or {}).get("uid") == uid]

    def _sync(self, job: Object) -> None:
        job = clone(job)
        status = job["status"]
        pods = self.pods_of(job)
        self._count(job, pods)
        pods = self.pods_of(job)
        running = [pod for pod in pods if pod["status"]["phase"] not in _TERMINAL]
        if not _finished(job):
            self._decide(job, running)
            if "deletionTimestamp" not in job["metadata"]:
                self._manage(job, running)
        running = [pod for pod in self.pods_of(job) if pod["status"]["phase"] not in _TERMINAL]
        going = [pod for pod in running if "deletionTimestamp" in pod["metadata"]]
        status["active"] = len(running) - len(going)
        status["terminating"] = len(going)
        status["ready"] = sum(_ready(pod) for pod in running)
        status.setdefault("uncountedTerminatedPods", {})
        self.store.edit("jobs", job, lambda new: new.update(status=_tidy(status)))
        if _finished(job):
            self._expire(job)

    def _count(self, job: Object, pods: list[Object]) -> None:
        """Each ended pod counts once: its finalizer goes when it has."""
        status = job["status"]
        for pod in pods:
            over = pod["status"]["phase"] in _TERMINAL
            if not over or TRACKING not in (pod["metadata"].get("finalizers") or ()):
                continue
            if pod["status"]["phase"] == "Succeeded":
                self._succeeded(job, pod)
            elif self._rule(job, pod) != "Ignore":
                status["failed"] = status.get("failed", 0) + 1
                self._failed_at[job["metadata"]["uid"]] = self.store.clock.now()
            # The count and the finalizer are written in this order; both before anything else.
            self.store.edit("jobs", job, lambda new: new.update(status=_tidy(status)))
            self.store.edit("pods", pod, _untrack)

    def _succeeded(self, job: Object, pod: Object) -> None:
        status = job["status"]
        if job["spec"]["completionMode"] == "Indexed":
            done = _indexes(status.get("completedIndexes", ""))
            done.add(int(pod["metadata"]["annotations"][INDEX]))
            status["completedIndexes"] = ",".join(map(str, sorted(done)))
            status["succeeded"] = len(done)
        else:
            status["succeeded"] = status.get("succeeded", 0) + 1

    def _rule(self, job: Object, pod: Object) -> str:
        """Apply podFailurePolicy to a failed pod; FailJob is written into the Job."""
        policy = job["spec"].get("podFailurePolicy") or {"rules": []}
        for index, rule in enumerate(policy["rules"]):
            code = _exit_code(rule.get("onExitCodes"), pod)
            if code is None and not _has_condition(rule.get("onPodConditions"), pod):
                continue
            if rule["action"] == "FailJob":
                name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                what = (
                    f"Container {pod['spec']['containers'][0]['name']} for pod {name} failed with"
                )
                self._target(
                    job, "PodFailurePolicy",
                    f"{what} exit code {code} matching FailJob rule at index {index}",
                )  # fmt: skip
            return str(rule["action"])
        return "Count"

    def _decide(self, job: Object, running: list[Object]) -> None:
        spec, status = job["spec"], job["status"]
        if _condition(job, "FailureTarget") is None:
            if status.get("failed", 0) > spec["backoffLimit"]:
                self._target(
                    job, "BackoffLimitExceeded", "Job has reached the specified backoff limit"
                )
            elif self._late(job):
                self._target(
                    job, "DeadlineExceeded", "Job was active longer than specified deadline"
                )
        failing = _condition(job, "FailureTarget")
        if failing is not None:
            self._end_pods(running)
            # Failed is said only of a Job none of whose pods can still be doing anything.
            if not running:
                self._set(job, "Failed", failing["reason"], failing["message"])
                record(self.store, job, "Job", failing["reason"], failing["message"],
                       "job-controller", warning=True)  # fmt: skip
            return
        wanted = spec.get("completions")
        if wanted is not None and status.get("succeeded", 0) >= wanted:
            words = ("CompletionsReached", "Reached expected number of succeeded pods")
            self._set(job, "SuccessCriteriaMet", *words)
            self._end_pods(running)
            if not running:
                self._set(job, "Complete", *words)
                status["completionTime"] = self.store.clock.stamp()
                record(self.store, job, "Job", "Completed", "Job completed", "job-controller")

    def _late(self, job: Object) -> bool:
        limit, start = job["spec"].get("activeDeadlineSeconds"), job["status"].get("startTime")
        if limit is None or start is None:
            return False
        return self.store.clock.now() >= moment(start) + timedelta(seconds=limit)

    def _manage(self, job: Object, running: list[Object]) -> None:
        spec, status = job["spec"], job["status"]
        if (
            _finished(job)
            or _condition(job, "FailureTarget")
            or _condition(job, "SuccessCriteriaMet")
        ):
            return
        if spec["suspend"]:
            if _condition(job, "Suspended") is None:
                self._set(job, "Suspended", "JobSuspended", "Job suspended")
                record(self.store, job, "Job", "Suspended", "Job suspended", "job-controller")
            status.pop("startTime", None)
            for pod in running:  # not tracked any more: such an end is no failure
                self.store.edit("pods", pod, _untrack)
            self._end_pods(running)
            return
        if "startTime" not in status:
            status["startTime"] = self.store.clock.stamp()
            if _condition(job, "Suspended") is not None:
                self._set(job, "Suspended", "JobResumed", "Job resumed", "False")
        if not self._backing_off(job):
            self._fill(job, running)

    def _backing_off(self, job: Object) -> bool:
        failures = job["status"].get("failed", 0)
        last = self._failed_at.get(job["metadata"]["uid"])
        if not failures or last is None:
            return False
        wait_s = min(600.0, 10.0 * 2 ** (failures - 1))
        return bool(self.store.clock.now() < last + timedelta(seconds=wait_s))

    def _fill(self, job: Object, running: list[Object]) -> None:
        spec, status = job["spec"], job["status"]
        if spec["podReplacementPolicy"] == "Failed":
            held = running
        else:
            held = [pod for pod in running if "deletionTimestamp" not in pod["metadata"]]
        if spec["completionMode"] == "Indexed":
            taken = {int(pod["metadata"]["annotations"][INDEX]) for pod in held}
            taken |= _indexes(status.get("completedIndexes", ""))
            free = [index for index in range(spec["completions"]) if index not in taken]
            for index in free[: spec["parallelism"] - len(held)]:
                self._make(job, index)
            return
        left = (spec.get("completions") or spec["parallelism"]) - status.get("succeeded", 0)
        for _ in range(min(spec["parallelism"], left) - len(held)):
            self._make(job, None)

    def _make(self, job: Object, index: int | None) -> None:
        template = clone(job["spec"]["template"])
        room = self.store.find("namespaces", None, job["metadata"]["namespace"])
        refused = violations(room, template["spec"])
        if refused:
            words = f'Error creating: pods "{job["metadata"]["name"]}-" is forbidden: violates '
            words += f'PodSecurity "restricted:latest": {", ".join(refused)}'
            record(self.store, job, "Job", "FailedCreate", words, "job-controller", warning=True)
            return
        metadata, name = template["metadata"], job["metadata"]["name"]
        base = name if index is None else f"{name}-{index}"
        made: Object = {
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": f"{base[:57]}-{defaults.suffix()}", "generateName": f"{base}-",
                "namespace": job["metadata"]["namespace"],
                "labels": dict(metadata["labels"]), "finalizers": [TRACKING],
                "annotations": dict(metadata.get("annotations") or {}),
                "ownerReferences": [{
                    "apiVersion": "batch/v1", "kind": "Job", "name": name,
                    "uid": job["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
                }],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }  # fmt: skip
        if index is not None:
            made["metadata"]["annotations"][INDEX] = str(index)
            made["metadata"]["labels"][INDEX] = str(index)
            made["spec"]["hostname"] = base
            source = {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}}
            for container in made["spec"]["containers"]:
                container.setdefault("env", []).append(
                    {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
                )
        pod = self.store.add("pods", made)
        words = f"Created pod: {pod['metadata']['name']}"
        record(self.store, job, "Job", "SuccessfulCreate", words, "job-controller")

    def _end_pods(self, running: list[Object]) -> None:
        for pod in running:
            if "deletionTimestamp" not in pod["metadata"]:
                self.store.edit("pods", pod, lambda new: mark_deleted(new, self.store))

    def _expire(self, job: Object) -> None:
        limit = job["spec"].get("ttlSecondsAfterFinished")
        if limit is None or "deletionTimestamp" in job["metadata"]:
            return
        over = next(
            each for each in job["status"]["conditions"] if each["type"] in ("Complete", "Failed")
        )
        if self.store.clock.now() >= moment(over["lastTransitionTime"]) + timedelta(seconds=limit):
            self.store.edit("jobs", job, lambda new: _mark_foreground(new, self.store))

    def _target(self, job: Object, reason: str, message: str) -> None:
        if _condition(job, "FailureTarget") is None:
            self._set(job, "FailureTarget", reason, message)

    def _set(self, job: Object, kind: str, reason: str, message: str, value: str = "True") -> None:
        conditions = job["status"].setdefault("conditions", [])
        if any(each["type"] == kind and each["status"] == value for each in conditions):
            return
        conditions[:] = [each for each in conditions if each["type"] != kind]
        now = self.store.clock.stamp()
        conditions.append({
            "type": kind, "status": value, "reason": reason, "message": message,
            "lastProbeTime": now, "lastTransitionTime": now,
        })  # fmt: skip


def mark_deleted(pod: Object, store: Store, grace_s: float | None = None) -> None:
    """Delete as DELETE does; at once where nobody can end it."""
    metadata, grace = pod["metadata"], pod["spec"]["terminationGracePeriodSeconds"]
    if grace_s is not None:
        grace = grace_s
    if not pod["spec"].get("nodeName") or pod["status"]["phase"] in _TERMINAL:
        grace = 0
    due = stamp(store.clock.now() + timedelta(seconds=grace))
    metadata["deletionTimestamp"] = metadata.get("deletionTimestamp") or due
    metadata["deletionGracePeriodSeconds"] = min(
        grace, metadata.get("deletionGracePeriodSeconds", grace)
    )


def _mark_foreground(job: Object, store: Store) -> None:
    job["metadata"]["deletionTimestamp"] = store.clock.stamp()
    job["metadata"]["deletionGracePeriodSeconds"] = 0
    job["metadata"].setdefault("finalizers", []).append("foregroundDeletion")


def _untrack(pod: Object) -> None:
    left = [name for name in pod["metadata"].pop("finalizers", ()) if name != TRACKING]
    if left:
        pod["metadata"]["finalizers"] = left


def _owner(pod: Object) -> Object | None:
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((each for each in owners if each.get("controller")), None)


def _condition(job: Object, kind: str) -> Object | None:
    for each in job["status"].get("conditions") or ():
        if each["type"] == kind and each["status"] == "True":
            return each
    return None


def _finished(job: Object) -> bool:
    return bool(_condition(job, "Complete") or _condition(job, "Failed"))


def _ready(pod: Object) -> bool:
    return any(
        each["type"] == "Ready" and each["status"] == "True"
        for each in pod["status"].get("conditions") or ()
    )


def _indexes(text: str) -> set[int]:
    return {int(part) for part in text.split(",") if part}


def _tidy(status: Object) -> Object:
    """Zeroes are left out, as Go leaves them out."""
    kept = {key: value for key, value in status.items() if value not in (0, [])}
    return {**kept, "ready": status.get("ready", 0), "terminating": status.get("terminating", 0)}


def _exit_code(rule: Object | None, pod: Object) -> int | None:
    if rule is None:
        return None
    for state in pod["status"].get("containerStatuses") or ():
        ended = state["state"].get("terminated")
        if not ended or rule.get("containerName") not in (None, state["name"]):
            continue
        code = int(ended["exitCode"])
        if code and (code in rule["values"]) == (rule["operator"] == "In"):
            return code
    return None


def _has_condition(rules: list[Object] | None, pod: Object) -> bool:
    have = {(each["type"], each["status"]) for each in pod["status"].get("conditions") or ()}
    return any((rule["type"], rule["status"]) in have for rule in rules or ())
