"""Many clients, each a process, that want the last epsilon of one namespace at the same moment."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from ledgers.herd import answer, spawn, wait_for
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.filter import RenyiFilter, event_cost
from taciturn.errors import BudgetExceededError
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey, job_statements, verify

EPSILON, DELTA = 8.0, 1e-6
ADMITTED, REFUSED = 10, 11


def race(url: str, key: str, clients: int, room: int) -> dict[str, Any]:
    """Let `clients` reserve a job each, where exactly `room` of them fit.

    Returns:
        How many were admitted and refused, the seconds from the first start to the last answer, and
        epsilon of all that was admitted.
    """
    plan = _plan(room)
    secret = SealKey.from_text(key)
    engine = open_database(url)
    Ledger(engine, secret).open_account("race", "race", epsilon=EPSILON, delta=DELTA)
    engine.dispose()
    gate, opener = os.pipe()

    def client(number: int) -> None:
        ledger = Ledger(open_database(url), secret, patience_s=120)
        os.close(opener)
        os.read(gate, 1)  # returns for all when the parent closes its end
        try:
            ledger.reserve(
                f"race-{number}",
                f"race-{number}",
                namespace="race",
                grants=(),
                event=plan,
                hold_s=3600,
            )
        except BudgetExceededError:
            os._exit(REFUSED)
        os._exit(ADMITTED)

    pids = [spawn(lambda number=number: client(number)) for number in range(clients)]  # type: ignore[misc]
    os.close(gate)
    start = time.perf_counter()
    os.close(opener)
    codes = Counter(wait_for(pids))
    seconds = time.perf_counter() - start
    admitted = job_statements(engine, secret, "race")
    spent = dpsgd_event(
        sampling_probability=0.05,
        noise_multiplier=_NOISE,
        steps=_steps(room) * max(len(admitted), 1),
    )
    return {
        "clients": clients,
        "room": room,
        "admitted": codes[ADMITTED],
        "refused": codes[REFUSED],
        "in_the_ledger": len(admitted),
        "seconds": seconds,
        "epsilon": epsilon(spent, DELTA),
        "cap": EPSILON,
        "problems": [str(problem) for problem in verify(engine, key=secret).problems],
    }


_NOISE = 1.5


def _steps(room: int) -> int:
    """Steps of a job of which exactly `room` fit."""
    one = RenyiFilter(EPSILON, DELTA).share(
        event_cost(dpsgd_event(sampling_probability=0.05, noise_multiplier=_NOISE, steps=1))
    )
    return int(1 / (one * (room + 0.5)))


def _plan(room: int) -> Any:
    return dpsgd_event(sampling_probability=0.05, noise_multiplier=_NOISE, steps=_steps(room))


if __name__ == "__main__":
    answer(race)
