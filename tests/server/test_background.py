"""Background tasks run at their turns, survive their own failures, and end with the gateway."""

from __future__ import annotations

import logging
import threading

import pytest

from taciturn.server.background import Background


def test_a_task_runs_at_once_is_woken_and_ends() -> None:
    background, turns = Background(), threading.Semaphore(0)
    background.every("dispatcher", 3600.0, turns.release)
    background.start()
    assert turns.acquire(timeout=60)
    assert not turns.acquire(timeout=0.05)
    background.wake("dispatcher")
    assert turns.acquire(timeout=60)
    background.stop()
    background.wake("dispatcher")
    assert not turns.acquire(timeout=0.05)


def test_a_failure_is_logged_without_its_words_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    background, turns = Background(), threading.Semaphore(0)

    def fail() -> None:
        turns.release()
        raise RuntimeError("boom")

    with caplog.at_level(logging.ERROR):
        background.every("reaper", 0.01, fail)
        background.start()
        assert all(turns.acquire(timeout=60) for _ in range(3))
        background.stop()
    assert all(record.getMessage() == "background task failed" for record in caplog.records)


def test_stopping_is_announced_once_and_before_anything_ends() -> None:
    background, seen = Background(), []

    class Hub:
        def start(self) -> None:
            seen.append("start")

        def stop(self) -> None:
            seen.append("stop")

    background.add(Hub())
    background.on_stopping(lambda: seen.append("stopping"))
    background.start()
    background.announce_stop()
    background.stop()
    assert seen == ["start", "stopping", "stop"]


def test_two_tasks_of_one_name_are_refused() -> None:
    background = Background()
    background.every("reaper", 1.0, lambda: None)
    with pytest.raises(ValueError, match="already"):
        background.every("reaper", 1.0, lambda: None)
