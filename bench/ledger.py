"""The ledger under load and faults, on SQLite and on PostgreSQL.

    python bench/ledger.py            100 clients, 100 takeovers, 2,000 kills on each database
    python bench/ledger.py --quick    the same in small

Prints what happened, and ends with 1 if anything was overspent, lost or stuck. PostgreSQL runs as a
private server that waits for the disk, as in production. The seconds include waiting for that disk.
"""

from __future__ import annotations

import platform
import time
from typing import Any

from ledgers.databases import database, parser, run_on_each
from ledgers.herd import launched
from taciturn.accounting.events import dpsgd_event
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey, verify

CLIENTS, ROOM = 100, 7
ROUNDS, QUICK_ROUNDS = 100, 5
KILLS, QUICK_KILLS = 2000, 50
SERIAL = 300


def serial(url: str, key: str, operations: int) -> dict[str, Any]:
    """How long one operation takes where nobody else is there, and verifying all of them."""
    engine, secret = open_database(url), SealKey.from_text(key)
    ledger = Ledger(engine, secret)
    ledger.open_account("serial", "serial", epsilon=8, delta=1e-6)
    block = dpsgd_event(sampling_probability=0.01, noise_multiplier=20.0, steps=1)
    plan = dpsgd_event(sampling_probability=0.01, noise_multiplier=20.0, steps=operations)
    ledger.reserve("r", "serial", namespace="serial", grants=(), event=plan, hold_s=3600)
    token = ledger.acquire("a", "serial", worker="w", lease_s=3600).token
    start = time.perf_counter()
    for number in range(operations):
        ledger.charge(f"serial-{number}", "serial", token, block)
    charged = time.perf_counter()
    found = verify(engine, key=secret)
    end = time.perf_counter()
    return {
        "ms_per_charge": 1000 * (charged - start) / operations,
        "us_per_verified_entry": 1e6 * (end - charged) / found.entries,
        "problems": [str(problem) for problem in found.problems],
    }


def _told(name: str, found: dict[str, Any], *good: bool) -> bool:
    problems = found.pop("problems")
    fine = not problems and all(good)
    shown = ", ".join(
        f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in found.items()
    )
    print(f"  {name}: {'good' if fine else 'BAD'}; {shown}", flush=True)
    for problem in problems[:10]:
        print(f"    {problem}", flush=True)
    return fine


def suffered(kind: str, *, rounds: int, kills: int, seed: int) -> bool:
    """Everything on one database; whether all went well."""
    key = SealKey.generate().to_text()
    print(f"{kind}, Python {platform.python_version()}", flush=True)
    fine = []
    with database(kind) as url:
        alone = serial(url, key, SERIAL)
        fine.append(_told("alone", alone))
    with database(kind) as url:
        race = launched("race", {"url": url, "key": key, "clients": CLIENTS, "room": ROOM})
        fine.append(
            _told(
                "race",
                race,
                race["admitted"] == race["in_the_ledger"] == ROOM,
                race["refused"] == CLIENTS - ROOM,
                race["epsilon"] <= race["cap"],
            )
        )
    with database(kind) as url:
        duel = launched("duel", {"url": url, "key": key, "rounds": rounds, "seed": seed})
        fine.append(_told("duel", duel, duel["fenced"] == rounds, duel["overlaps"] == 0))
    with database(kind) as url:
        chaos = launched("chaos", {"url": url, "key": key, "kills": kills, "seed": seed})
        fine.append(
            _told(
                "chaos",
                chaos,
                chaos["overspends"] == chaos["lost_charges"] == chaos["stuck"] == 0,
                chaos["seconds_to_release"] < 60,
                chaos["largest_epsilon"] <= chaos["cap"],
            )
        )
    return all(fine)


def main() -> None:
    """Both databases, one after the other."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    rounds, kills = (QUICK_ROUNDS, QUICK_KILLS) if arguments.quick else (ROUNDS, KILLS)
    run_on_each(
        lambda kind: suffered(kind, rounds=rounds, kills=kills, seed=arguments.seed), arguments.only
    )


if __name__ == "__main__":
    main()
