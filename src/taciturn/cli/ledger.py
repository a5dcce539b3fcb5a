"""`taciturn ledger show | verify`: the privacy ledger of a server, read from its database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from taciturn.server.ledger import BudgetStatement, SealKey

app = typer.Typer(
    help="The privacy ledger: show balances, verify every row.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
DATABASE_VARIABLE, KEY_VARIABLE = "TACITURN_DATABASE_URL", "TACITURN_LEDGER_KEY"

Database = Annotated[
    str | None,
    typer.Option(help="sqlite:///FILE or postgresql+psycopg://HOST/NAME [TACITURN_DATABASE_URL]."),
]
Key = Annotated[
    Path | None,
    typer.Option(help="File with the key of the seals, in hexadecimal [TACITURN_LEDGER_KEY]."),
]


@app.command()
def show(
    namespace: Annotated[str | None, typer.Argument(help="One namespace, with its jobs.")] = None,
    database: Database = None,
    key: Key = None,
) -> None:
    """Show what is spent, held and left; with a namespace, also its jobs and what each one cost.

    Where nobody has set a budget, as in a ledger of `taciturn fit --ledger`, epsilon of all runs is
    shown in place of a share.
    """
    engine = _opened(database)
    from taciturn.accounting.calibrate import MAX_EPSILON
    from taciturn.server.ledger import namespaces, statement

    secret = _key(key)
    names = [namespace] if namespace else namespaces(engine)
    statements = [statement(engine, secret, name) for name in names]
    without_budget = [each for each in statements if each.budget.epsilon == MAX_EPSILON]
    with_budget = [each for each in statements if each not in without_budget]
    if with_budget or not statements:
        table = Table("namespace", "grant", "epsilon", "delta", "spent", "held", "left")
        for found in with_budget:
            table.add_row(found.namespace, "", *_budget(found.budget))
            for holder, grant in found.grants.items():
                table.add_row("", holder, *_budget(grant))
        _console().print(table)
    for found in without_budget:
        _show_together(engine, secret, found.namespace)
    for found in statements:
        if found.exceptions:
            _say(
                f"{found.namespace}: {found.exceptions} release(s) without guarantee, which no "
                "budget covers",
                style="bold yellow",
            )
    if namespace:
        _show_jobs(engine, secret, namespace)


@app.command()
def verify(
    database: Database = None,
    key: Key = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option(help="File of an earlier --write-anchor, kept elsewhere; repeatable."),
    ] = None,
    write_anchor: Annotated[
        Path | None, typer.Option(help="Write here where every chain ends now, if all is well.")
    ] = None,
) -> None:
    """Derive all balances again from the entries; exit code 1 if any row is not as it was written.

    Without the key, seals are not checked: a chain that was rewritten to its end is not found.
    Without an anchor, a database that was put back as a whole is not found.
    """
    engine = _opened(database)
    from taciturn.server.ledger import anchors_text, read_anchors
    from taciturn.server.ledger import verify as verify_ledger

    anchors = [each for path in anchor or [] for each in read_anchors(path)]
    found = verify_ledger(engine, key=_key(key), anchors=anchors)
    for problem in found.problems:
        _say(str(problem), style="bold red")
    verdict = "IN ORDER" if found.ok else "NOT IN ORDER"
    seals = "checked" if found.seals_checked else "NOT checked"
    _say(
        f"{verdict}: {found.entries} entries of {found.accounts} namespace(s); seals {seals}; "
        f"{len(anchors)} anchor(s) checked",
        style="bold green" if found.ok else "bold red",
    )
    if not found.ok:
        raise typer.Exit(1)
    if write_anchor is not None:
        write_anchor.write_text(anchors_text(found.anchors), encoding="utf-8")
        _say(f"{write_anchor}: keep it where the database's owner cannot write")


def _show_together(engine: Engine, key: SealKey | None, namespace: str) -> None:
    """What runs without a budget have spent together."""
    from taciturn.server.ledger import together

    found = together(engine, key, namespace)
    _say(
        f"{namespace}: epsilon={found.epsilon:.4g}, delta={found.delta:.3g} spent by "
        f"{found.jobs} run(s), without a budget",
        style="bold",
    )


def _show_jobs(engine: Engine, key: SealKey | None, namespace: str) -> None:
    from taciturn.server.ledger import job_report, job_statements

    table = Table("job", "status", "grants", "spent", "held", "epsilon", "worker", "lease until")
    for job in job_statements(engine, key, namespace):
        report = job_report(engine, key, job.job)
        table.add_row(
            job.job,
            job.status,
            ", ".join(job.grants),
            f"{job.charged:.1%}",
            f"{job.held:.1%}",
            f"{report.epsilon:.4g}",
            job.worker,
            f"{job.lease_until:%Y-%m-%d %H:%M:%S}Z" if job.status == "open" else "",
        )
    _console().print(table)


def _budget(budget: BudgetStatement) -> tuple[str, ...]:
    return (
        f"{budget.epsilon:g}",
        f"{budget.delta:g}",
        f"{budget.charged:.1%}",
        f"{budget.taken - budget.charged:.1%}",
        f"{max(1 - budget.taken, 0):.1%}",
    )


def _opened(database: str | None) -> Engine:
    from taciturn.errors import MissingDependencyError, SpecError

    try:
        from taciturn.server import schema
        from taciturn.server.database import open_database
    except ImportError as error:
        raise MissingDependencyError(
            f"the ledger needs {error.name}; install taciturn[server]"
        ) from None
    url = database or os.environ.get(DATABASE_VARIABLE)
    if not url:
        raise SpecError(f"no database is named; give --database, or set {DATABASE_VARIABLE}")
    engine = open_database(url, create=False)
    schema.check(engine)
    return engine


def _key(path: Path | None) -> SealKey | None:
    from taciturn.errors import SigningKeyError
    from taciturn.server.ledger import SealKey

    if path is not None:
        try:
            return SealKey.from_text(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise SigningKeyError(
                f"ledger key {path} cannot be read ({type(error).__name__})"
            ) from None
    text = os.environ.get(KEY_VARIABLE)
    return SealKey.from_text(text) if text else None


def _say(line: str, style: str | None = None) -> None:
    _console().print(line, style=style, markup=False, soft_wrap=True)


def _console() -> Console:
    return Console(highlight=False)
