"""`taciturn audit`: what an attack on a fitted model proves, beside what is promised."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import say
from taciturn.cli.options import open_model, spec_command
from taciturn.spec import AuditJobSpec, AuditSpec, parse

REFUTED = 3
"""Exit code of an audit that finds the guarantee broken."""


@spec_command(AuditJobSpec)
def audit(fields: dict[str, Any]) -> None:
    """Attack a fitted model: a lower bound on its epsilon, beside what is promised."""
    job = parse(AuditJobSpec, fields)
    result = open_model(job).audit(signing_key=job.signing_key, **job.arguments(AuditSpec))
    title = f"{result.threat_model}, {result.canaries} canaries ({result.canary_kind})"
    table = Table(title=title, title_justify="left")
    for column in ("guesses", "right", "epsilon at least"):
        table.add_column(column, justify="right")
    for game in result.rounds:
        table.add_row(str(game.guesses), str(game.correct), f"{game.epsilon_lower_bound:.3g}")
    Console(highlight=False).print(table)
    say(result.verdict, style="bold red" if result.refuted else None)
    if result.refuted:
        sys.exit(REFUTED)
