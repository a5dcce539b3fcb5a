"""Names and labels of a worker's objects, and how they are found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taciturn.server.launchers.base import LaunchError, handle_of, parts_of

_MANAGED_BY = "app.kubernetes.io/managed-by"
_COMPONENT = "app.kubernetes.io/component"
_INSTANCE = "app.kubernetes.io/instance"
_JOB = "taciturn.dev/job"
_ATTEMPT = "taciturn.dev/attempt"


class Labels:
    """Labels of all objects of one gateway's workers."""

    @staticmethod
    def shared(instance: str) -> dict[str, str]:
        """Labels of every object of a gateway."""
        return {_MANAGED_BY: "taciturn", _COMPONENT: "worker", _INSTANCE: instance}

    @staticmethod
    def selector(instance: str) -> str:
        """Selects everything."""
        return ",".join(f"{key}={value}" for key, value in Labels.shared(instance).items())


@dataclass(frozen=True, slots=True)
class Worker:
    """One attempt of one job."""

    job_id: str
    attempt: int

    @classmethod
    def of(cls, handle: str) -> Worker:
        """Raises LaunchError: it is no handle."""
        return cls(*parts_of(handle))

    @classmethod
    def labelled(cls, item: Mapping[str, Any]) -> Worker | None:
        """Worker that an object belongs to; None if its labels do not say."""
        labels = item["metadata"].get("labels") or {}
        job_id, attempt = labels.get(_JOB), labels.get(_ATTEMPT, "")
        return cls(job_id, int(attempt)) if job_id and attempt.isdecimal() else None

    @property
    def handle(self) -> str:
        """Handle of the worker, as a launcher uses it."""
        return handle_of(self.job_id, self.attempt)

    @property
    def name(self) -> str:
        """Name of Job, Service, Secret and policy. Raises LaunchError if it would be too long for
        the host names of a Job of several machines."""
        name = f"taciturn-{self.job_id}-{self.attempt}".replace("_", "-").lower()
        if len(name) > 57:
            raise LaunchError(f"{self.handle!r} is too long for a name; 48 characters at most")
        return name

    @property
    def first_host(self) -> str:
        """Host where the processes of several machines meet: the pod of index 0."""
        return f"{self.name}-0.{self.name}"

    def labels(self, instance: str) -> dict[str, str]:
        """Labels of all of this worker's objects."""
        return {**Labels.shared(instance), _JOB: self.job_id, _ATTEMPT: str(self.attempt)}

    def selector(self, instance: str) -> str:
        """Selects all of this worker's objects."""
        return ",".join(f"{key}={value}" for key, value in self.labels(instance).items())

    @staticmethod
    def job_selector(instance: str, job_id: str) -> str:
        """Selects the objects of all attempts of a job."""
        return f"{Labels.selector(instance)},{_JOB}={job_id}"
