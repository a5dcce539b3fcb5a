"""Ctrl-C between steps, not inside one: so that a resumable checkpoint can be left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptFlag:
    """True once the user has asked to stop."""

    def __init__(self) -> None:
        self.raised = False


@contextmanager
def deferred_interrupt() -> Iterator[InterruptFlag]:
    """Within the block the first Ctrl-C (or SIGTERM) sets the flag; a second Ctrl-C is at once."""
    flag = InterruptFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if flag.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.raised = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
