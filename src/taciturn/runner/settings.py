"""What a worker is told: environment variables, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.errors import SpecError


@dataclass(frozen=True, slots=True)
class Settings:
    """A worker's job, and where it may keep what is private.

    TACITURN_SIGNING_KEY is read where certificates are signed (`taciturn.certificate.signers`).

    Attributes:
        workspace: the root of all jobs' folders; each job has one, named by its id, that outlives
            a worker, so that the next one goes on where it ended.
    """

    gateway_url: str
    job: str
    token: str = field(repr=False)
    workspace: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Read TACITURN_*; raises SpecError that names what is missing, and quotes no value."""
        names = ("GATEWAY_URL", "JOB", "JOB_TOKEN", "WORKSPACE")
        values = [environment.get(f"TACITURN_{name}", "") for name in names]
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        if missing:
            raise SpecError(f"TACITURN_{missing[0]} is not set; a gateway's launcher sets it")
        url, job, token, workspace = values
        return cls(url, job, token, Path(workspace))
