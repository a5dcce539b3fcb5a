"""Python's garbage collector, which finds nothing while modules are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Collect no garbage inside, for imports.

    What a module makes stays. The collector would look at all of it again and again, which is a
    fifth of the seconds that it takes to import the engine or the gateway.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
