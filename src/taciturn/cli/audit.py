"""`taciturn audit`: what an attack on a fitted model proves, beside what is promised."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from taciturn.cli import ExitCode
from taciturn.cli.gateway import Answer, figures, say
from taciturn.cli.options import open_model, spec_command
from taciturn.spec import AuditJobSpec, AuditSpec, parse


@spec_command(AuditJobSpec, keys="the fields of audit.json, such as epsilon_lower_bound, refuted")
def audit(fields: dict[str, Any], answer: Answer) -> None:
    """Attack a fitted model: a lower bound on its epsilon, beside what is promised."""
    job = parse(AuditJobSpec, fields)
    result = open_model(job).audit(signing_key=job.signing_key, **job.arguments(AuditSpec))
    answer(result)
    title = f"{result.threat_model}, {result.canaries} canaries ({result.canary_kind})"
    columns = ("guesses", "right", "epsilon at least")
    rows = [(str(g.guesses), str(g.correct), f"{g.epsilon_lower_bound:.3g}") for g in result.rounds]
    Console(highlight=False).print(figures(title, columns, rows))
    say(result.verdict, style="bold red" if result.refuted else None)
    if result.refuted:
        raise typer.Exit(ExitCode.VERDICT)
