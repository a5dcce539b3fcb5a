"""Exit codes of a worker's process: what its launcher may make of them.

A worker that could tell the gateway how the job ended, failures included, ends with `REPORTED`. The
others say whether another try could do better. A launcher restarts nothing that is FINAL.
"""

from __future__ import annotations

from enum import IntEnum


class WorkerExit(IntEnum):
    """Exit codes of `python -m taciturn.worker`."""

    REPORTED = 0
    BAD_CONFIGURATION = 2
    FENCED = 3
    UNREACHABLE = 4
    INTERRUPTED = 75
    GUARANTEE_REFUSED = 77


FINAL = (WorkerExit.BAD_CONFIGURATION, WorkerExit.FENCED, WorkerExit.GUARANTEE_REFUSED)
"""Trying again would end the same way, or would break a promise."""
