"""Background work of the gateway: periodic tasks, each on its own thread, and whatever else starts
and stops with it.

    background.every("reaper", 5.0, jobs.reap)       # when services are put together
    background.on_stopping(hub.close)                # the moment a stop is asked for
    background.add(hub)                              # start() and stop() with the gateway
    background.wake("dispatcher")                    # soon, instead of at the end of its period

A task that fails is logged and tried again at its next turn: it has to find out itself what was
left half done, as it has to after a crash.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

_log = logging.getLogger("taciturn.background")
_REST_S = 0.2  # between two turns at least: those who wake a task may be many
_JITTER = 0.2  # of a period: several gateways on one database do not all come at once


class Component(Protocol):
    """Service that runs as long as the gateway does."""

    def start(self) -> None:
        """Begin; called once, before the first request."""

    def stop(self) -> None:
        """End, and return when ended; called once, after the last request."""


class PeriodicTask:
    """Work that is done again and again, by one thread."""

    def __init__(self, name: str, period_s: float, work: Callable[[], object]) -> None:
        self.name, self.period_s, self.work = name, period_s, work
        self._is_due = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"taciturn-{name}", daemon=True)

    def start(self) -> None:
        """Do the work now, and then at every turn."""
        self._thread.start()

    def wake(self) -> None:
        """Let the next turn come now, or where one has just been, in a moment."""
        self._is_due.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the turn that runs, and end."""
        self._over.set()
        self._is_due.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._over.is_set():
            self._is_due.clear()
            self._turn()
            period_s = self.period_s * random.uniform(1 - _JITTER, 1 + _JITTER)
            if not self._over.wait(min(_REST_S, period_s)):
                self._is_due.wait(period_s)

    def _turn(self) -> None:
        try:
            self.work()
        except Exception:
            _log.exception("background task failed", extra={"task": self.name})


@dataclass(slots=True)
class Background:
    """All of them. Registered before `start`; stopped in the opposite order."""

    _components: list[Component] = field(default_factory=list)
    _tasks: dict[str, PeriodicTask] = field(default_factory=dict)
    _callbacks: list[Callable[[], object]] = field(default_factory=list)
    _started: list[Component] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def every(self, name: str, period_s: float, work: Callable[[], object]) -> None:
        """Do `work` every `period_s`, give or take a fifth."""
        if name in self._tasks:
            raise ValueError(f"there is a background task {name!r} already; name it otherwise")
        self._tasks[name] = task = PeriodicTask(name, period_s, work)
        self._components.append(task)

    def add(self, component: Component) -> None:
        """Start and stop this with the gateway."""
        self._components.append(component)

    def on_stopping(self, callback: Callable[[], object]) -> None:
        """Call this as soon as a stop is asked for, while requests are still being finished: end
        what would go on for ever, such as event streams. From any thread; must not block."""
        self._callbacks.append(callback)

    def wake(self, name: str) -> None:
        """Let a task's next turn come at once; nothing where there is no such task."""
        if name in self._tasks:
            self._tasks[name].wake()

    def start(self) -> None:
        """Start all."""
        for component in self._components:
            component.start()
            self._started.append(component)

    def announce_stop(self) -> None:
        """A stop was asked for. Calling it again does nothing."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        for callback in self._callbacks:
            callback()

    def stop(self) -> None:
        """End all."""
        self.announce_stop()
        while self._started:
            self._started.pop().stop()
