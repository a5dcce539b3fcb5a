"""glibc's malloc, told to share its arenas among threads and to give back what is free.

By default every new thread gets an arena of its own, up to eight for each core, and what is freed
in one is never given to another, nor to the system unless it lies at the end. A gateway has dozens
of threads that come and go with the load, so each arena grows for hours to the most that requests
on it ever took at once. Threads here wait for Python's lock before they allocate, so that they do
not wait for each other's arenas.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

ARENAS = 2
TRIM_S = 60.0
"""How often free memory is to be given back: it takes a few milliseconds, and as many again to get
the same memory anew."""

_NAMES = 100_000
_M_ARENA_MAX = -8
_CHOSEN_BY = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def share_arenas() -> bool:
    """Have all threads share `ARENAS` arenas; True if the allocator took it. To be called before
    there are threads: an arena that exists stays.

    Only on Linux with glibc; elsewhere, and where whoever starts the gateway has chosen by the
    environment, nothing is done.
    """
    if not _glibc() or any(name in os.environ for name in _CHOSEN_BY):
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS) == 1)


def give_back() -> bool:
    """Give whole pages that are free to the system; True if there were any. Only on Linux with
    glibc; elsewhere nothing is done."""
    return _glibc() and bool(ctypes.CDLL(None).malloc_trim(0) == 1)


def widen_names() -> None:
    """Make room in Python's table of interned names, while there is one process and one table.

    The names of all that is imported nearly fill it, and those that come and go take up places
    until it is made anew, twice as large. That would come in each process at some time, for 2 MB.
    """
    for number in range(_NAMES):
        sys.intern(f"taciturn {number}")


def _glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
