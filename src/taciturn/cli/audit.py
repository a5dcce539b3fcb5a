"""`taciturn audit`: what an attack on a fitted model proves, beside what is promised."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from taciturn.llm import LLM
from taciturn.reports.privacy import Audit
from taciturn.spec import AuditJobSpec

REFUTED = 3
"""Exit code of an audit that finds the guarantee broken."""


def run_audit(job: AuditJobSpec) -> None:
    """Print guesses, bounds and verdict; exit with REFUTED if more was found than is promised."""
    model = LLM(job.model, base=job.base, device=job.device)
    found = model.audit(signing_key=job.signing_key, **job.audit_spec().model_dump())
    console = Console(highlight=False)
    console.print(_table(found))
    style = "bold red" if found.refuted else None
    console.print(found.verdict, style=style, markup=False, soft_wrap=True)
    if found.refuted:
        sys.exit(REFUTED)


def _table(found: Audit) -> Table:
    title = f"{found.threat_model}, {found.canaries} canaries ({found.canary_kind})"
    table = Table(title=title, title_justify="left")
    for column in ("guesses", "right", "epsilon at least"):
        table.add_column(column, justify="right")
    for each in found.rounds:
        table.add_row(str(each.guesses), str(each.correct), f"{each.epsilon_lower_bound:.3g}")
    return table
