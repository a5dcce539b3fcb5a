"""Settings of a worker: environment variables, and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.errors import SpecError

PEER_LIMIT_S = 120.0
"""Longer than a library keeps a process from giving signs of life, such as while it loads."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """A worker's job, and where it may keep what is private.

    TACITURN_SIGNING_KEY is read where certificates are signed (`taciturn.certificate.signers`).

    Attributes:
        workspace: the root of all jobs' folders; each job has one, named by its id, that outlives
            a worker, so that the next one goes on where it ended.
        checkpoint_url, checkpoint_key: of an object store for copies of checkpoints, sealed under
            the owner's key; both or neither.
        peer_limit_s: how long another process of this worker may give no sign of life.
    """

    gateway_url: str
    job: str
    token: str = field(repr=False)
    workspace: Path
    checkpoint_url: str | None = None
    checkpoint_key: bytes | None = field(default=None, repr=False)
    peer_limit_s: float = PEER_LIMIT_S

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> WorkerSettings:
        """Read TACITURN_*; raises SpecError that names what is missing, and quotes no value."""
        names = ("GATEWAY_URL", "JOB", "JOB_TOKEN", "WORKSPACE")
        values = [environment.get(f"TACITURN_{name}", "") for name in names]
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        if missing:
            raise SpecError(f"TACITURN_{missing[0]} is not set; a gateway's launcher sets it")
        url, job, token, workspace = values
        limit_s = _seconds(environment, "TACITURN_PEER_LIMIT_S", PEER_LIMIT_S)
        return cls(url, job, token, Path(workspace), *_checkpoints(environment), limit_s)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not 1.0 <= value <= 86_400.0:
        raise SpecError(f"{name}={text[:40]!r} must be seconds from 1 to 86400; leave it out")
    return value


def _checkpoints(environment: Mapping[str, str]) -> tuple[str | None, bytes | None]:
    """URL and key of the copies of checkpoints. One without the other is a mistake: with a URL
    alone the copies would be plain, with a key alone there would be none."""
    url = environment.get("TACITURN_CHECKPOINT_URL", "")
    key = environment.get("TACITURN_CHECKPOINT_KEY", "").strip()
    if not url and not key:
        return None, None
    if not key:
        raise SpecError(
            "TACITURN_CHECKPOINT_URL is set and TACITURN_CHECKPOINT_KEY is not: nothing is kept in "
            "a store unsealed; give 64 hexadecimal digits, such as `openssl rand -hex 32` makes"
        )
    if not url:
        raise SpecError(
            "TACITURN_CHECKPOINT_KEY is set, TACITURN_CHECKPOINT_URL is not; give both or neither"
        )
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key):
        raise SpecError(
            f"TACITURN_CHECKPOINT_KEY has {len(key)} characters, which are not 64 hexadecimal "
            "digits; give a key such as `openssl rand -hex 32` makes"
        )
    return url, bytes.fromhex(key)
