"""A call that may not come back, and is not waited for longer than it may take."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(limit_s: float, call: Callable[[], T]) -> T:
    """Return or raise what `call()` does; raises TimeoutError once it has taken `limit_s`.

    It runs in a thread of its own. One that runs on is told to end, which Python code does, and is
    left behind if it is a library's that does not listen: it ends with the process.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="taciturn-row", daemon=True)
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    if thread.ident is not None:
        number, end = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, end)
    raise TimeoutError(f"it took longer than {limit_s:g} s")
