"""What waits for the worker's clock leaves once, and the newest progress leaves at last."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taciturn.errors import UnavailableError
from taciturn.wire.events import ProgressEvent
from taciturn.wire.jobs import JobKind
from taciturn.wire.worker import EventBatch
from taciturn.worker.client import GatewayClient
from taciturn.worker.egress import Egress
from taciturn.worker.heartbeat import Heartbeat


class Gateway:
    """Keeps what it gets, each number once; its answer to the first message is lost."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.is_first = True

    def events(self, batch: EventBatch) -> None:
        for number, event in enumerate(batch.events, batch.first):
            self.kept.setdefault(number, event)
        if self.is_first:
            self.is_first = False
            raise UnavailableError("no answer")


def test_progress_after_a_lost_answer_arrives() -> None:
    gateway = Gateway()
    egress = Egress(cast(GatewayClient, gateway), JobKind.FIT)
    egress.progress(1, 9, None)
    egress.progress(2, 9, None)
    with pytest.raises(UnavailableError):
        egress.flush()
    for step in (3, 4):  # these may not take the number under which 2 has arrived
        egress.progress(step, 9, None)
    egress.flush()
    egress.progress(5, 9, None)
    egress.flush()
    assert [gateway.kept[number] for number in range(3)] == [
        ProgressEvent(step=step, steps=9, epsilon=None) for step in (2, 4, 5)
    ]


def test_events_leave_once_a_tick_however_often_the_heart_beats() -> None:
    """Else a long tick would hide nothing: steps between two messages tell how long they took."""
    sent_s: list[float] = []
    beats = itertools.count()

    class Client:
        def heartbeat(self) -> SimpleNamespace:
            next(beats)
            return SimpleNamespace(cancel=False)

        def events(self, _: EventBatch) -> None:
            sent_s.append(time.monotonic())

    client = cast(GatewayClient, Client())
    egress = Egress(client, JobKind.FIT)
    with Heartbeat(client, egress, lease_s=0.04, tick_s=0.5):
        for step in itertools.count(1):
            egress.progress(step, step, None)
            time.sleep(0.002)
            if len(sent_s) == 3:
                break
    assert next(beats) > 10
    assert all(later - sooner >= 0.45 for sooner, later in itertools.pairwise(sent_s))
