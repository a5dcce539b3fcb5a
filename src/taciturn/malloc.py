"""glibc's malloc, tuned for the two programs that need it: an engine that trains, and a gateway.

On other systems every function does nothing and returns False.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

ARENAS = 2
TRIM_S = 60.0
"""How often a gateway returns free memory: it takes a few milliseconds, and as many again to get
the same memory anew."""

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_ENVIRONMENT = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never trim it; True if the allocator took it.

    By default each step of a fit maps the same large blocks anew and pays page faults for them.
    Peak memory stays the same, but it is returned to the system only when the process ends.
    """
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all(_mallopt(option, value) for option, value in settings)


def share_arenas() -> bool:
    """Have all threads share `ARENAS` arenas; True if the allocator took it.

    By default each thread gets an arena, up to eight for each core, and what is freed in one is
    never given to another: each grows to the most that requests on it ever took at once. To be
    called before there are threads, since an arena that exists stays. Nothing is changed where the
    environment says how many arenas there are.
    """
    return not any(name in os.environ for name in _ENVIRONMENT) and _mallopt(_M_ARENA_MAX, ARENAS)


def return_free_memory() -> bool:
    """Return whole free pages to the system; True if there were any."""
    return _is_glibc() and bool(ctypes.CDLL(None).malloc_trim(0) == 1)


def _mallopt(option: int, value: int) -> bool:
    return _is_glibc() and bool(ctypes.CDLL(None).mallopt(option, value) == 1)


def _is_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
