"""The whole gateway under faults, on SQLite and on PostgreSQL.

    python bench/gateway_faults.py            2,000 kills on each database
    python bench/gateway_faults.py --quick    the same in small

`kill -9` of the gateway, of one of its processes, of workers, clients and database connections at
random moments, while clients ask for jobs and stub workers run them. Prints what happened, and ends
with 1 if anything was overspent, lost, or stuck for more than 60 s after the last restart.
"""

from __future__ import annotations

import platform
import time

from ledgers.databases import database, parser, run_on_each
from ledgers.herd import launched
from taciturn.server.ledger import SealKey

KILLS, QUICK_KILLS = 2000, 40


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
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--kills", type=int)
    arguments = options.parse_args()
    kills = arguments.kills or (QUICK_KILLS if arguments.quick else KILLS)
    run_on_each(lambda kind: suffered(kind, kills, arguments.seed), arguments.only)


if __name__ == "__main__":
    main()
