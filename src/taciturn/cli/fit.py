"""`taciturn fit`: one job, from flags or YAML to an output folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from taciturn.cli.progress import FitScreen
from taciturn.engine.training.processes import is_first_process
from taciturn.llm import LLM
from taciturn.local.fit import PAGE
from taciturn.spec import JobSpec

_LOUD = (
    "target_epsilon is unlimited: NO PRIVACY. The model may repeat any row it was fitted on; "
    "treat it like the data itself."
)


def run_fit(job: JobSpec, *, resume: bool, show_private: bool) -> None:
    """Fit and say where the result is and what it promises."""
    # Of several processes that torchrun started, one speaks.
    console = Console(quiet=not is_first_process())
    if not job.private:
        console.print(_LOUD, style="bold yellow", markup=False)
    model = LLM(job.model, base=job.base)
    with FitScreen(console, "fit", show_private=show_private) as screen:
        model.fit(
            job.data,
            output=job.output,
            resume=resume,
            signing_key=job.signing_key,
            observer=screen.observer(),
            ledger=job.ledger,
            ledger_namespace=job.ledger_namespace,
            **job.fit_spec().model_dump(),
        )
    console.print(f"{model.policy}", style="bold", markup=False)
    report = model.privacy
    assert report is not None
    console.print(f"number of units (public): {report.n_units}", markup=False)
    if report.ledger is not None:
        console.print(
            f"all runs on these data and this unit together: {report.ledger}",
            style="bold",
            markup=False,
            soft_wrap=True,
        )
    if job.canaries:
        console.print(
            f"{job.canaries} of them are canaries; what they prove: "
            f"taciturn audit {shlex.quote(job.output)}",
            markup=False,
            soft_wrap=True,
        )
    output = Path(job.output).resolve()
    console.print(f"fitted model: {output}", markup=False, soft_wrap=True)
    console.print(f"privacy report: {output / PAGE}", markup=False, soft_wrap=True)
    console.print(
        f"its subfolder private/ holds values computed from your rows: do not share it. Try it:\n"
        f"  taciturn sample {shlex.quote(job.output)} --prompt 'The patient'",
        markup=False,
        soft_wrap=True,
    )
