"""A call that does not come back is left."""

from __future__ import annotations

import threading
import time

import pytest

from taciturn.data.tokens.deadline import within


def test_what_it_gives_is_given() -> None:
    assert within(5, lambda: 7) == 7
    assert within(5, lambda: None) is None


@pytest.mark.parametrize("kind", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
def test_what_it_raises_is_raised(kind: type[BaseException]) -> None:
    def failing() -> None:
        raise kind

    with pytest.raises(kind):
        within(5, failing)


def test_an_endless_loop_is_left_and_ends() -> None:
    started, before = time.monotonic(), threading.active_count()

    def endless() -> None:
        while True:
            sum(range(100))

    with pytest.raises(TimeoutError):
        within(0.2, endless)
    assert time.monotonic() - started < 60
    while threading.active_count() > before and time.monotonic() - started < 120:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_what_does_not_listen_is_left() -> None:
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(3))
