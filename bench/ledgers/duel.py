"""Two workers, each a process, that both believe that a job is theirs."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from sqlalchemy import select

from ledgers.herd import answer, spawn, wait_for
from taciturn.accounting.events import dpsgd_event
from taciturn.errors import FencedError
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey, verify
from taciturn.server.ledger.entry import Acquired, Charged, parse_details
from taciturn.server.ledger.tables import entries

BLOCKS = 5000
"""More than the first worker gets to before the second one comes."""

FENCED, NOT_FENCED = 10, 11


def duel(url: str, key: str, rounds: int, seed: int) -> dict[str, Any]:
    """In each round a second worker takes a job over while the first one runs it.

    Returns:
        In how many rounds the first worker was fenced off, by how many charges it overlapped with
        the second one (there must be none), and how many blocks were charged twice (none).
    """
    secret = SealKey.from_text(key)
    engine = open_database(url)
    ledger = Ledger(engine, secret)
    ledger.open_account("duel", "duel", epsilon=8, delta=1e-6)
    fenced = 0
    for number in range(rounds):
        job = f"duel-{number}"
        plan = dpsgd_event(sampling_probability=0.01, noise_multiplier=20.0, steps=BLOCKS)
        ledger.reserve(job, job, namespace="duel", grants=(), event=plan, hold_s=3600)
        token = ledger.acquire(f"{job}-first", job, worker="first", lease_s=60).token
        engine.dispose()
        pause_s = random.Random(seed + number).uniform(0, 0.1)
        codes = wait_for(
            [
                spawn(lambda job=job, token=token: _first(url, secret, job, token)),  # type: ignore[misc]
                spawn(lambda job=job, pause_s=pause_s: _second(url, secret, job, pause_s)),  # type: ignore[misc]
            ]
        )
        fenced += codes == [FENCED, 0]
    overlaps, charged = _overlaps(engine)
    return {
        "rounds": rounds,
        "fenced": fenced,
        "overlaps": overlaps,
        "charged": charged,
        "problems": [str(problem) for problem in verify(engine, key=secret).problems],
    }


def _first(url: str, key: SealKey, job: str, token: int) -> None:
    ledger = Ledger(open_database(url), key)
    try:
        for number in range(BLOCKS):
            ledger.charge(f"{job}-1-{number}", job, token, _block())
    except FencedError:
        for again in (
            lambda: ledger.commit(f"{job}-commit-1", job, token),
            lambda: ledger.check_token(job, token),
        ):
            try:
                again()
            except FencedError:
                continue
            os._exit(NOT_FENCED)
        os._exit(FENCED)


def _second(url: str, key: SealKey, job: str, pause_s: float) -> None:
    ledger = Ledger(open_database(url), key)
    time.sleep(pause_s)
    lease = ledger.acquire(f"{job}-second", job, worker="second", lease_s=60, takeover=True)
    for number in range(10):
        ledger.charge(f"{job}-2-{number}", job, lease.token, _block())
    ledger.commit(f"{job}-commit-2", job, lease.token)


def _block() -> Any:
    return dpsgd_event(sampling_probability=0.01, noise_multiplier=20.0, steps=1)


def _overlaps(engine: Any) -> tuple[int, int]:
    """Charges with a token that was void by then, and all charges."""
    tokens: dict[str, int] = {}
    overlaps = charged = 0
    with engine.connect() as connection:
        texts = connection.execute(select(entries.c.details).order_by(entries.c.sequence))
        for text in texts.scalars():
            details = parse_details(text)
            if isinstance(details, Acquired):
                tokens[details.job] = details.token
            elif isinstance(details, Charged):
                charged += 1
                overlaps += details.token != tokens[details.job]
    return overlaps, charged


if __name__ == "__main__":
    answer(duel)
