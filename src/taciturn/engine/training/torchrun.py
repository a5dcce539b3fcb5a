"""The variables by which a process knows, before it loads torch, that torchrun started it."""

from __future__ import annotations

import os


def started_together() -> bool:
    """True if this is one of several processes that torchrun (or a program like it) started."""
    variables = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in variables) and int(os.environ["WORLD_SIZE"]) > 1


def is_first_process() -> bool:
    """True if this process is the one that prints and writes; True without torchrun."""
    return not started_together() or int(os.environ["RANK"]) == 0
