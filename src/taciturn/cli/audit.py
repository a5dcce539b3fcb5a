"""`taciturn audit`: what an attack on a fitted model proves, beside what is promised."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from taciturn.cli.gateway import figures, say
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
    columns = ("guesses", "right", "epsilon at least")
    rows = [(str(g.guesses), str(g.correct), f"{g.epsilon_lower_bound:.3g}") for g in result.rounds]
    Console(highlight=False).print(figures(title, columns, rows))
    say(result.verdict, style="bold red" if result.refuted else None)
    if result.refuted:
        sys.exit(REFUTED)
