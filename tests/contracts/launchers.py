"""What every launcher promises; a test module per launcher subclasses this and gives `made`.

`made` is a launcher whose workers do what their order's environment says: they run the program
PROGRAM ("sleep": until stopped; "end": nothing; "stubborn": until killed), after adding a line to
the file STARTED in their workspace.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from taciturn.server.launchers.base import Launcher, Order, WorkerState

WAIT_S = 10.0


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class LauncherContract:
    """Inherited by the tests of every launcher."""

    @pytest.fixture
    def made(self) -> Launcher:
        """The launcher under test."""
        raise NotImplementedError

    def restarted(self, made: Launcher) -> Launcher:
        """The same launcher in a gateway that has just been started."""
        raise NotImplementedError

    def starts(self, made: Launcher, order: Order) -> int:
        """How often workers of this job have begun to run."""
        raise NotImplementedError

    def order(self, program: str = "sleep", job: str = "job_1", attempt: int = 1) -> Order:
        return Order(job, attempt, {"PROGRAM": program})

    def test_a_worker_that_was_never_started_is_absent(self, made: Launcher) -> None:
        assert made.status("job_1-1") is WorkerState.ABSENT
        assert made.alive() == ()
        assert made.leftover_jobs() == ()

    def test_a_worker_runs_until_it_is_stopped(self, made: Launcher) -> None:
        order = self.order()
        handle = made.launch(order)
        assert handle == order.handle
        until(lambda: self.starts(made, order) == 1)
        assert made.status(handle) is WorkerState.RUNNING
        assert made.alive() == (handle,)
        made.stop(handle, 5)
        until(lambda: made.status(handle) is WorkerState.ENDED)
        assert made.alive() == ()

    def test_an_attempt_is_started_once(self, made: Launcher) -> None:
        order = self.order()
        for _ in range(3):
            made.launch(order)
        again = self.restarted(made)
        again.launch(order)
        until(lambda: self.starts(made, order) == 1)
        made.stop(order.handle, 0)
        until(lambda: again.status(order.handle) is WorkerState.ENDED)
        again.launch(order)
        assert again.status(order.handle) is WorkerState.ENDED
        assert self.starts(made, order) == 1

    def test_another_attempt_is_another_worker(self, made: Launcher) -> None:
        first, second = self.order("end"), self.order(attempt=2)
        made.launch(first)
        until(lambda: made.status(first.handle) is WorkerState.ENDED)
        made.launch(second)
        until(lambda: self.starts(made, second) == 2)
        assert made.alive() == (second.handle,)
        made.stop(second.handle, 0)

    def test_who_does_not_listen_is_killed_after_a_grace(self, made: Launcher) -> None:
        order = self.order("stubborn")
        made.launch(order)
        until(lambda: self.starts(made, order) == 1)
        made.stop(order.handle, 1.0)  # well above what a busy machine makes of the next line
        time.sleep(0.1)
        assert made.status(order.handle) is WorkerState.RUNNING
        until(lambda: made.alive() == ())
        assert made.status(order.handle) is WorkerState.ENDED

    def test_a_restarted_gateway_finds_and_stops_its_workers(self, made: Launcher) -> None:
        order = self.order()
        made.launch(order)
        until(lambda: self.starts(made, order) == 1)
        again = self.restarted(made)
        assert again.alive() == (order.handle,)
        again.stop(order.handle, 0)
        until(lambda: again.status(order.handle) is WorkerState.ENDED)

    def test_nothing_is_left_of_a_job_that_is_forgotten(self, made: Launcher) -> None:
        order = self.order()
        made.launch(order)
        until(lambda: self.starts(made, order) == 1)
        made.forget(order.job_id)
        assert made.status(order.handle) is WorkerState.RUNNING
        made.stop(order.handle, 0)
        until(lambda: made.status(order.handle) is WorkerState.ENDED)
        assert made.leftover_jobs() == (order.job_id,)
        made.forget(order.job_id)
        assert made.leftover_jobs() == ()

    def test_stopping_who_is_gone_does_nothing(self, made: Launcher) -> None:
        made.stop("job_9-1", 1)
        order = self.order("end")
        made.launch(order)
        until(lambda: made.status(order.handle) is WorkerState.ENDED)
        made.stop(order.handle, 0)
        assert made.status(order.handle) is WorkerState.ENDED
