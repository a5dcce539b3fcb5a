"""The whole gateway under faults, on SQLite and on PostgreSQL.

    python bench/gateway_faults.py            2,000 kills on each database
    python bench/gateway_faults.py --quick    the same in small

`kill -9` of the gateway, of one of its processes, of workers, clients and database connections at
random moments, while clients ask for jobs and stub workers run them. Prints what happened, and ends
with 1 if anything was overspent, lost, or stuck for more than 60 s after the last restart.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ledgers.cluster import NoPostgresError, postgres
from ledgers.herd import launched
from taciturn.server.database import open_database
from taciturn.server.ledger import SealKey
from taciturn.server.schema import versions

KILLS, QUICK_KILLS = 2000, 40


@contextmanager
def database(kind: str) -> Iterator[str]:
    """A new database with the gateway's tables."""
    if kind == "SQLite":
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'gateway.db'}"
            _migrate(url)
            yield url
        return
    with postgres(durable=True) as cluster:
        url = cluster.create("gateway")
        _migrate(url)
        yield url


def _migrate(url: str) -> None:
    engine = open_database(url)
    versions.upgrade(engine)
    engine.dispose()


def suffered(kind: str, kills: int, seed: int) -> bool:
    """All kills on one database; whether all went well."""
    start = time.perf_counter()
    with database(kind) as url:
        settings = {"url": url, "key": SealKey.generate().to_text(), "kills": kills, "seed": seed}
        found = launched("faults", settings, package="gateways")
    fine = found["overspends"] == found["lost_charges"] == found["stuck"] == 0
    fine = (
        fine
        and found["blocks_run"] > 0
        and not found["problems"]
        and found["largest_epsilon"] <= found["cap"]
    )
    print(f"{kind}, Python {platform.python_version()}: {'good' if fine else 'BAD'}", flush=True)
    for name, value in found.items():
        print(f"  {name}: {value:.3g}" if isinstance(value, float) else f"  {name}: {value}")
    print(f"  seconds: {time.perf_counter() - start:.0f}", flush=True)
    return fine


def main() -> None:
    """Both databases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["SQLite", "PostgreSQL"])
    arguments = parser.parse_args()
    kills = arguments.kills or (QUICK_KILLS if arguments.quick else KILLS)
    fine = True
    for kind in ("SQLite", "PostgreSQL") if arguments.only is None else (arguments.only,):
        try:
            fine &= suffered(kind, kills, arguments.seed)
        except NoPostgresError as error:
            print(f"{kind}: not measured, {error}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
