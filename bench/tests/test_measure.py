"""Interleaving: every variant gets the same block before anyone gets the next one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import pytest

from steps import measure
from steps.measure import Spread, interleave
from steps.variants import Gauge
from steps.workload import Batch, Workload

BLOCKS = Workload.random([[2]] * 4, vocabulary=10).blocks(1)


class Recorder:
    """Notes what it is given."""

    def __init__(self, name: str, seen: list[tuple[str, int]], work_s: float = 0.0) -> None:
        self.name, self.seen, self.work_s = name, seen, work_s

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        time.sleep(self.work_s)  # setting up, not measured
        with gauge:
            time.sleep(self.work_s)
        self.seen += [(self.name, batch.index) for batch in batches]


class Broken(Recorder):
    """Fails at the second block."""

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        if batches[0].index == 1:
            raise NotImplementedError("no rule\nfor this layer")
        super().run(batches, gauge)


def test_the_same_batches_for_each_in_rotating_order() -> None:
    seen: list[tuple[str, int]] = []
    timings = interleave({n: Recorder(n, seen) for n in "abc"}, BLOCKS, warmup=1)
    assert [index for _, index in seen] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert ["".join(name for name, index in seen if index == i) for i in range(4)] == [
        "abc", "bca", "cab", "abc",
    ]  # fmt: skip
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == dict.fromkeys(
        "abc", 3
    )


def test_only_what_is_inside_the_gauge_counts() -> None:
    timings = interleave({"a": Recorder("a", [], 0.05)}, BLOCKS[:2], warmup=0)
    assert all(0.05 <= seconds < 0.1 for seconds in timings.seconds["a"])


def test_processor_time_does_not_count_waiting() -> None:
    variants = {"a": Recorder("a", [], 0.05)}
    timings = interleave(variants, BLOCKS[:2], warmup=0, clock=measure.CLOCKS["processor"])
    assert all(seconds < 0.02 for seconds in timings.seconds["a"])


def test_a_failure_is_said_and_does_not_stop_the_others() -> None:
    seen: list[tuple[str, int]] = []
    variants = {"a": Recorder("a", seen), "b": Broken("b", seen)}
    timings = interleave(variants, BLOCKS, warmup=0)
    assert timings.failures == {"b": "NotImplementedError: no rule"}
    assert list(timings.seconds) == ["a"]
    assert len(timings.seconds["a"]) == 4


def test_ratios_are_taken_round_by_round() -> None:
    timings = interleave({"a": Recorder("a", []), "b": Recorder("b", [])}, BLOCKS, warmup=0)
    timings.seconds = {"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]}
    assert timings.ratio("b", "a") == Spread(2.0, 2.0, 2.0)
    assert timings.spread("a").median == 2.0
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([1.0, 2.0, 3.0]).high == pytest.approx(2.5)


def test_what_others_disturb_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block is quiet at the second try, the second never: its quietest try counts."""
    monkeypatch.setattr(measure, "_await_quiet", lambda: None)
    monkeypatch.setattr(measure, "_seconds_of_others", Ticks(iter([5, 0, 9, 3, 7])).read)
    seen: list[tuple[str, int]] = []
    timings = interleave({"a": Recorder("a", seen, 0.01)}, BLOCKS[:2], warmup=0, tries=3)
    assert [index for _, index in seen] == [0, 0, 1, 1, 1]
    assert len(timings.seconds["a"]) == 2
    assert 3 / 0.2 < timings.others <= 3 / 0.02


def test_it_waits_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    monkeypatch.setattr(measure, "_seconds_of_others", Ticks(iter([1, 1, 0, 1])).read)
    measure._await_quiet()
    assert len(slept) == 3
    monkeypatch.setattr(measure, "_seconds_of_others", Ticks(itertools.repeat(1)).read)
    measure._await_quiet()  # ends, though it never is
    assert len(slept) == 3 + measure._PATIENCE


class Ticks:
    """Read before and after each try, in which others took the next of `busy`."""

    def __init__(self, busy: Iterator[float]) -> None:
        self._busy, self._now, self._inside = busy, 0.0, False

    def read(self) -> float:
        """See `measure._seconds_of_others`."""
        self._now += next(self._busy) if self._inside else 0.0
        self._inside = not self._inside
        return self._now
