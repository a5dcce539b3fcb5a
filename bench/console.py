"""Pages of the console with 10,000 jobs, 1,000 datasets and 100,000 records in the database.

    python bench/console.py                    server time, size and queries of every page
    python bench/console.py --open 200         processor time that open consoles cost
    python bench/console.py --chart 10000      a live chart in Chromium, point by point
    python bench/console.py --database SQLite  one of them only
    python bench/console.py --rounds 100       more rounds

Pages are found from the application, and asked for by somebody who may see all of them. Times are
those of the application alone, in this process, with the record of each request on disk before the
answer leaves. Ends with 1 if a goal is missed: 95% of a page's answers within 50 ms, 100 KB of each
over the wire, a tenth of a core for 200 open consoles, no task above 50 ms for a chart.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sqlalchemy import text

from consoles.chart import watched
from consoles.filling import Amounts, fill
from consoles.readers import Reader, cost_of, readers_of
from gateways.load import quantile_ms
from gateways.served import Nobody, more_files, served
from ledgers.databases import database
from support.gateway import GatewayWorld
from support.pages import ROLE_OF, HangUp, Page, console_pages, furnished
from support.postgres import NoPostgresError
from support.statements import count_statements
from taciturn.server.app import create_app
from taciturn.server.catalog.reads import Reads
from taciturn.server.context import Gateway
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.journal import utc_now
from taciturn.server.settings import Settings

GOAL_MS, GOAL_BYTES, GOAL_SHARE = 50.0, 100_000, 0.10
TICK_S = 2.0


@dataclass
class Place:
    """A full gateway in this process, and how to serve it from another one."""

    gateway: Gateway
    world: GatewayWorld
    things: dict[str, str]
    settings: dict[str, str]


@dataclass
class Measured:
    """Answers of one page.

    Attributes:
        is_page: False for a file that is downloaded, which is as long as it is.
    """

    page: Page
    who: str
    seconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    status: int = 0
    bytes: int = 0
    statements: int = 0
    is_page: bool = True

    @property
    def well(self) -> bool:
        """True if it keeps to the goals."""
        fast = quantile_ms(self.seconds, 0.95) < GOAL_MS
        return fast and self.bytes < GOAL_BYTES and self.status < 400

    def __str__(self) -> str:
        quantiles = "".join(f"{quantile_ms(self.seconds, share):8.1f}" for share in (0.5, 0.95, 1))
        cpu_ms = 1000 * self.cpu_s / len(self.seconds)
        verdict = "" if self.well else "  MISSED"
        return (
            f"  {self.page.template:44.44} {self.who:5} {self.status} {quantiles} {cpu_ms:7.1f} "
            f"{self.bytes / 1000:7.1f} {self.statements:4}{verdict}"
        )


@contextmanager
def place(kind: str, amounts: Amounts) -> Iterator[Place]:
    """Fill a new database, which waits for the disk."""
    with tempfile.TemporaryDirectory(prefix="taciturn-bench-") as folder, database(kind) as url:
        engine, key = open_database(url), SealKey.generate()
        gateway = Gateway(
            Settings(data_dir=Path(folder), tick_s=TICK_S, source_prefixes=("/",)),
            engine,
            key,
            Ledger(engine, key),
            utc_now,
        )
        world = GatewayWorld(gateway).populate()
        start = time.perf_counter()
        things = furnished(world) | fill(world, amounts)
        # As the leader does, all the time, once records are old enough.
        later = replace(gateway, clock=lambda: utc_now() + timedelta(hours=1))
        Reads(later).turn()
        if kind == "PostgreSQL":
            with engine.begin() as connection:  # as autovacuum does, within minutes
                connection.execute(text("ANALYZE"))
        print(f"{kind}: filled in {time.perf_counter() - start:.0f} s")
        settings = {
            "TACITURN_DATA_DIR": folder,
            "TACITURN_DATABASE_URL": url,
            "TACITURN_LEDGER_KEY": key.to_text(),
            "TACITURN_TICK_S": str(TICK_S),
            "TACITURN_PROCESSES": "1",
            "TACITURN_ADDRESS_CONNECTIONS": "100000",
        }
        yield Place(gateway, world, things, settings)
        engine.dispose()


async def ask(app: Any, address: str, headers: dict[str, str]) -> tuple[int, int, str]:
    """Return the status of an answer, its bytes over the wire, and of what kind it is."""
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    status, length, kind = 0, 0, ""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, length, kind
        if message["type"] == "http.response.start":
            status = message["status"]
            kind = dict(message["headers"]).get(b"content-type", b"").decode()
        else:
            length += len(message.get("body", b""))

    await app(scope, receive, send)
    return status, length, kind


async def measure(at: Place, rounds: int) -> list[Measured]:
    """Ask for every page some times, in turn, so that what else the machine does hits all."""
    app = HangUp(create_app(at.gateway, launcher=Nobody()))
    table = [
        Measured(page, who)
        for page in console_pages(app.app, at.things)
        if not page.public
        for who in _who_sees(page)
    ]
    for round_number in range(rounds + 1):
        for line in [line for line in table if line.is_page]:
            headers = at.world.headers(line.who) | {
                "Accept": "text/html",
                "Accept-Encoding": "gzip",
                "Host": "gateway",
            }
            cpu_s, start_s = time.process_time(), time.perf_counter()
            with count_statements(at.gateway.engine) as talk:
                line.status, line.bytes, kind = await ask(app, line.page.address, headers)
            if round_number == 0:  # templates and statements are compiled once
                line.statements = talk.statements
                line.is_page = kind.startswith("text/html") or line.status == 204
                continue
            line.seconds.append(time.perf_counter() - start_s)
            line.cpu_s += time.process_time() - cpu_s
    return [line for line in table if line.is_page]


def _who_sees(page: Page) -> list[str]:
    """Return the people to ask as: those who see the most, and all for the home page."""
    able = [who for who, role in ROLE_OF.items() if page.is_for(role)]
    return able if page.template == "/" else able[:1] if "{" in page.template else able[:2]


def _waited_s() -> float | None:
    """Return for how long since the start of the machine some program has waited for a core; None
    where the system does not say."""
    try:
        line = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
    except (OSError, IndexError):
        return None
    return int(line.rpartition("total=")[2]) / 1e6


def pages(at: Place, rounds: int) -> bool:
    """Print a line for each page; returns whether all keep to the goals."""
    print(
        f"  {'page':44} {'who':5} {'':3} {'p50':>8}{'p95':>8}{'max':>8} {'cpu ms':>7} {'KB':>7} SQL"
    )
    start_s, waited_s = time.perf_counter(), _waited_s()
    table = asyncio.run(measure(at, rounds))
    took_s = time.perf_counter() - start_s
    for line in sorted(table, key=lambda line: -quantile_ms(line.seconds, 0.95)):
        print(line)
    if waited_s is not None:
        share = min(1.0, ((_waited_s() or waited_s) - waited_s) / took_s)
        print(
            f"  some program waited for a core in {share:.0%} of that time"
            + (": others ran, and p95 says more about them" if share > 0.5 else "")
        )
    return all(line.well for line in table)


def open_consoles(at: Place, number: int, seconds: float) -> bool:
    """Print what open consoles cost the gateway; returns whether that is below the goal."""
    with served(at.settings) as process:
        kinds = {
            "the page of a job that runs": (f"/jobs/{at.things['running']}", "olga"),
            "the start page": ("/", "olga"),
        }
        well = True
        for text, (address, who) in kinds.items():
            headers = at.world.headers(who)
            readers: list[Reader] = readers_of(process.port, address, headers)
            share, asked = asyncio.run(cost_of(at.gateway, process, readers, number, seconds))
            verdict = "" if share < GOAL_SHARE else "  MISSED"
            print(
                f"  {number} times {text} ({', '.join(map(str, readers)) or 'nothing more'}): "
                f"{share:.1%} of a core, {asked} answers in {seconds:.0f} s{verdict}"
            )
            well &= share < GOAL_SHARE
    return well


def main() -> int:
    """Run what is asked for on each database."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--database", choices=["SQLite", "PostgreSQL"], action="append")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--open", type=int, default=0)
    parser.add_argument("--chart", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    more_files()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    well = True
    for kind in arguments.database or ["SQLite", "PostgreSQL"]:
        try:
            with place(kind, Amounts()) as at:
                if arguments.chart:
                    smoothness = watched(at.world, at.things["running"], arguments.chart)
                    print(f"  {smoothness}{'' if smoothness.well else '  MISSED'}")
                    well &= smoothness.well
                elif arguments.open:
                    well &= open_consoles(at, arguments.open, arguments.seconds)
                else:
                    well &= pages(at, arguments.rounds)
        except NoPostgresError as error:
            print(f"{kind}: left out, {error}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
