"""When a worker is done with rows says nothing about them that is finer than a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from taciturn.data import declared
from taciturn.data.rows import Rows
from taciturn.errors import DataError
from taciturn.wire.jobs import RemoteProbe
from taciturn.wire.worker import BaseModelFacts
from taciturn.worker import job as worker_job
from taciturn.worker.job import Runner
from taciturn.worker.jobs import probe
from taciturn.worker.timing_padding import MOST_S, TimingPadding, boundary_s
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, fit_job, notes, request, source, write

BUCKET_S = 5.0


class Watch:
    """A clock that goes on where somebody sleeps, and where rows take their time."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(
    ("elapsed_s", "expected_s"),
    [(0, 5), (4.9, 5), (5, 5), (5.01, 10), (11, 20), (39, 40), (600, 640), (641, 1240)],
)
def test_boundaries_are_twice_as_far_and_then_no_further(
    elapsed_s: float, expected_s: float
) -> None:
    assert boundary_s(elapsed_s, BUCKET_S) == expected_s


def test_nobody_waits_longer_than_that() -> None:
    for elapsed_s in range(0, 20_000, 7):
        assert 0 <= boundary_s(elapsed_s, BUCKET_S) - elapsed_s <= MOST_S
    assert boundary_s(3.3, 0) == 3.3


def test_only_a_stage_that_began_is_waited_for() -> None:
    watch = Watch()
    padding = TimingPadding(BUCKET_S, watch, watch.sleep)
    padding.end()
    assert watch.now_s == 100
    padding.begin()
    watch.sleep(6)
    padding.end()
    padding.end()
    assert watch.now_s == 110


def test_who_waits_hears_of_orders() -> None:
    watch = Watch()
    padding = TimingPadding(BUCKET_S, watch, watch.sleep)
    padding.begin()

    def cancelled() -> None:
        if watch.now_s >= 102:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        padding.end(cancelled)
    assert watch.now_s == 102


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(
        worker_job, "TimingPadding", lambda bucket: TimingPadding(bucket, found, found.sleep)
    )
    return found


def slow(monkeypatch: pytest.MonkeyPatch, module: Any, watch: Watch, seconds: float) -> None:
    """Rows of this file take that long, of which the last one may fail."""
    real = module.open_rows

    def opened(*arguments: Any, **options: Any) -> Rows:
        rows: Rows = real(*arguments, **options)

        def batches() -> Iterator[pa.RecordBatch]:
            watch.sleep(seconds)
            yield from rows.batches
            if seconds > 20:
                raise DataError("the file ends in the middle of a row")

        return Rows(rows.schema, batches())

    monkeypatch.setattr(module, "open_rows", opened)


@pytest.mark.parametrize(("seconds", "seen"), [(0.01, 105), (4.2, 105), (7.0, 110), (21.0, 140)])
def test_what_is_seen_of_a_fit_is_the_bucket_of_its_preparation(
    base: BaseModelFacts,
    tmp_path: Path,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    seen: float,
) -> None:
    rows = source(write(notes(), tmp_path / "notes.jsonl"))
    asked = request(base.name, steps=1)
    job = fit_job(asked, base, rows).model_copy(update={"bucket_s": BUCKET_S})
    gateway, at = FakeGateway(job), []

    def noted(method: str, what: str) -> None:
        if what in ("charges", "incidents"):
            at.append(watch.now_s)

    gateway.before = noted
    slow(monkeypatch, declared, watch, seconds)
    Runner(tmp_path / "work").run(gateway.client())
    assert gateway.outcome.succeeded is (seconds < 20)
    assert at == [seen]


def test_what_is_seen_of_a_probe_is_a_bucket(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = source(write(notes(), tmp_path / "notes.jsonl"))
    job = assignment(RemoteProbe(dataset="notes"), source=rows, bucket_s=BUCKET_S)
    gateway = FakeGateway(job)
    slow(monkeypatch, probe, watch, 3.3)
    Runner(tmp_path / "work").run(gateway.client())
    assert gateway.outcome.succeeded
    assert watch.now_s == 105
