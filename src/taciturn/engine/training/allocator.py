"""glibc's malloc, told to keep freed memory.

By default it maps every large block anew and gives it back when freed, so that each step pays page
faults for the same logits again.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


@cache
def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never trim it; True if the allocator took it.

    Only on Linux with glibc; elsewhere nothing is done. Peak memory stays what it was, but it is
    returned to the system only when the process ends.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
    return all(libc.mallopt(option, value) == 1 for option, value in settings)
