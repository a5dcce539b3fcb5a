"""`taciturn ledger show | verify`: the privacy ledger of a server, read from its database."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taciturn.cli import ExitCode
from taciturn.cli.gateway import (
    Answer,
    answering,
    connected,
    group,
    json_option,
    on_terminal,
    say,
    show_rows,
)
from taciturn.data.filesystem import appearing_at_once

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from taciturn.server.ledger import BudgetStatement, SealKey, Together
    from taciturn.wire.ledger import AnchorView

app = group("The privacy ledger: show balances, verify every row.")
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
    as_json: Annotated[
        bool,
        json_option(
            "namespaces, each with budget and grants, or epsilon, delta and jobs together; and jobs"
        ),
    ] = False,
) -> None:
    """Show what is spent, held and left; with a namespace, also its jobs and what each one cost.

    Where nobody has set a budget, as in a ledger of `taciturn fit --ledger`, epsilon of all runs is
    shown in place of a share.
    """
    with answering(as_json=as_json) as answer:
        _show(_open(database), _key(key), namespace, answer)


def _show(engine: Engine, secret: SealKey | None, namespace: str | None, answer: Answer) -> None:
    """Print the balances, and of one namespace its jobs."""
    from taciturn.accounting.calibrate import MAX_EPSILON
    from taciturn.server.ledger import namespaces, statement

    names = [namespace] if namespace else namespaces(engine)
    statements = [statement(engine, secret, name) for name in names]
    without_budget = [balance for balance in statements if balance.budget.epsilon == MAX_EPSILON]
    with_budget = [balance for balance in statements if balance not in without_budget]
    if with_budget or not statements:
        rows = []
        for balance in with_budget:
            rows.append((balance.namespace, "", *_budget(balance.budget)))
            rows += [
                (balance.namespace, holder, *_budget(grant))
                for holder, grant in balance.grants.items()
            ]
        show_rows(("namespace", "grant", "epsilon", "delta", "spent", "held", "left"), rows)
    totals = [_show_together(engine, secret, balance.namespace) for balance in without_budget]
    for balance in statements:
        if balance.exceptions:
            say(  # no row of the list: on a terminal below it, else among the errors
                f"{balance.namespace}: {balance.exceptions} release(s) without guarantee, which no "
                "budget covers",
                style="bold yellow",
                error=not on_terminal(),
            )
    jobs = _show_jobs(engine, secret, namespace) if namespace else None
    answer({"namespaces": [*with_budget, *totals], "jobs": jobs})


@app.command()
def verify(
    database: Database = None,
    key: Key = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option(help="File of an earlier --write-anchor, kept elsewhere; repeatable."),
    ] = None,
    write_anchor: Annotated[
        Path | None, typer.Option(help="File for the end of every chain, written if all is well.")
    ] = None,
) -> None:
    """Derive all balances again from the entries; exit code 1 if any row is not as it was written.

    With a database, here, from its rows. Without one the gateway of `taciturn login` does it: then
    you take its word for it.

    Without the key, seals are not checked: a chain that was rewritten to its end is not found.
    Without an anchor, a database that was put back as a whole is not found.
    """
    if not (database or os.environ.get(DATABASE_VARIABLE)):
        _verify_at_the_gateway(key, anchor or [], write_anchor)
        return
    engine = _open(database)
    from taciturn.server.ledger import anchors_text, read_anchors
    from taciturn.server.ledger import verify as verify_ledger

    anchors = [row for path in anchor or [] for row in read_anchors(path)]
    verdict = verify_ledger(engine, key=_key(key), anchors=anchors)
    for problem in verdict.problems:
        say(str(problem), style="bold red")
    _say_verdict(verdict.ok, verdict.entries, verdict.accounts, verdict.seals_checked, len(anchors))
    if write_anchor is not None:
        _write_anchor(write_anchor, anchors_text(verdict.anchors))


def _verify_at_the_gateway(key: Path | None, anchor: list[Path], write_anchor: Path | None) -> None:
    """Have the gateway do it, against anchors that were kept here."""
    from taciturn.certificate.canonical import canonical_json
    from taciturn.errors import AuthenticationError, SpecError
    from taciturn.sdk.credentials import find_credentials

    try:
        find_credentials(None, None)
    except AuthenticationError:
        raise SpecError(
            f"no database is named, and no gateway; give --database, set {DATABASE_VARIABLE}, or "
            "have a gateway verify its own ledger, after: taciturn login URL"
        ) from None
    if key is not None:
        raise SpecError("--key is for --database: a gateway checks seals with its own key")
    anchors = [row for path in anchor for row in _anchors(path)]
    with connected() as client:
        verdict = client.auditor.verify_ledger(anchors)
    for problem in verdict["problems"]:
        where = f"namespace {problem['namespace']!r}" if problem["namespace"] else "the ledger"
        entry = f", entry {problem['sequence']}" if problem["sequence"] else ""
        say(f"{where}{entry}: {problem['text']}", style="bold red")
    counts = (verdict["entries"], verdict["namespaces"], verdict["seals_checked"], len(anchors))
    _say_verdict(verdict["ok"], *counts)
    if write_anchor is not None:
        _write_anchor(write_anchor, canonical_json(verdict["anchors"]).decode() + "\n")


def _anchors(path: Path) -> tuple[AnchorView, ...]:
    """Anchors of a file of --write-anchor; raises SpecError if it is none."""
    from pydantic import TypeAdapter, ValidationError

    from taciturn.errors import SpecError
    from taciturn.wire.ledger import AnchorView

    try:
        return TypeAdapter(tuple[AnchorView, ...]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SpecError(
            f"{path} holds no anchors that can be read ({type(error).__name__}); give a file that "
            "--write-anchor wrote"
        ) from None


def _say_verdict(ok: bool, entries: int, accounts: int, seals_checked: bool, anchors: int) -> None:
    """One line; exit code 1 unless all is well."""
    verdict = "IN ORDER" if ok else "NOT IN ORDER"
    seals = "checked" if seals_checked else "NOT checked"
    say(
        f"{verdict}: {entries} entries of {accounts} namespace(s); seals {seals}; {anchors} "
        "anchor(s) checked",
        style="bold green" if ok else "bold red",
    )
    if not ok:
        raise typer.Exit(ExitCode.REFUSED)


def _write_anchor(path: Path, text: str) -> None:
    with appearing_at_once(path) as partial:
        partial.write_text(text, encoding="utf-8")
    say(f"{path}: keep it where the database's owner cannot write")


def _show_together(engine: Engine, key: SealKey | None, namespace: str) -> Together:
    """Print and return what runs without a budget have spent together."""
    from taciturn.server.ledger import together

    total = together(engine, key, namespace)
    say(
        f"{namespace}: epsilon={total.epsilon:.4g}, delta={total.delta:.3g} spent by "
        f"{total.jobs} run(s), without a budget",
        style="bold",
    )
    return total


def _show_jobs(engine: Engine, key: SealKey | None, namespace: str) -> list[dict[str, Any]]:
    """Print a namespace's jobs, and return them with the epsilon of each."""
    from taciturn.server.ledger import job_report, job_statements

    jobs = job_statements(engine, key, namespace)
    epsilons = [job_report(engine, key, job.job).epsilon for job in jobs]
    rows = [
        (
            job.job,
            job.status,
            ", ".join(job.grants),
            f"{job.charged:.1%}",
            f"{job.reserved:.1%}",
            f"{epsilon:.4g}",
            job.worker or "",
            f"{job.lease_until:%Y-%m-%d %H:%M:%S}Z" if job.status == "open" else "",
        )
        for job, epsilon in zip(jobs, epsilons, strict=True)
    ]
    names = ("job", "status", "grants", "spent", "held", "epsilon", "worker", "lease until")
    say("")
    show_rows(names, rows)
    return [
        {**asdict(job), "epsilon": epsilon} for job, epsilon in zip(jobs, epsilons, strict=True)
    ]


def _budget(budget: BudgetStatement) -> tuple[str, ...]:
    return (
        f"{budget.epsilon:g}",
        f"{budget.delta:g}",
        f"{budget.charged:.1%}",
        f"{budget.used - budget.charged:.1%}",
        f"{max(1 - budget.used, 0):.1%}",
    )


def _open(database: str | None) -> Engine:
    from taciturn.errors import MissingDependencyError, SpecError

    url = database or os.environ.get(DATABASE_VARIABLE)
    if not url:
        raise SpecError(
            f"no database is named; give --database, or set {DATABASE_VARIABLE}. What is left of a "
            "gateway's budgets: taciturn budget"
        )
    try:
        from taciturn.server.database import open_database
        from taciturn.server.schema import versions
    except ImportError as error:
        raise MissingDependencyError(
            f"the ledger needs {error.name}; install taciturn[server]"
        ) from None
    engine = open_database(url, create=False)
    versions.check(engine)
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
