"""`taciturn fit`: one job, from flags or YAML to an output folder or a gateway's model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console

from taciturn.cli.gateway import connected, is_remote, named_dataset, required, say
from taciturn.cli.options import HeldOut, Purpose, check_gateway, spec_command
from taciturn.spec import GATEWAY, FitSpec, Flag, JobSpec, RunSpec, Spec, check_local, parse

_NO_PRIVACY = (
    "target_epsilon is unlimited: NO PRIVACY. The model may repeat any row it was fitted on; "
)


class _Options(Spec):
    held_out: HeldOut = None
    purpose: Purpose = None
    name: Annotated[str | None, Field(description="A gateway's data: name of the model.")] = None
    wait: Annotated[
        bool | None, Field(description="A gateway's data: wait for the job. [default: wait]")
    ] = None
    resume: Annotated[
        bool | None,
        Flag(("--resume",)),
        Field(description="Go on with the interrupted run in --output."),
    ] = None
    show_private: Annotated[
        bool | None,
        Flag(("--show-private",)),
        Field(description="Owner only: show training loss and clipping, which are private."),
    ] = None


@spec_command(JobSpec, _Options)
def fit(fields: dict[str, Any]) -> None:
    """Fine-tune a model on private text."""
    if is_remote(fields.get("data")):
        _fit_remotely(fields)
        return
    check_gateway(fields, "wait", "name", "purpose", "held_out")
    resume, show_private = (bool(fields.pop(name, False)) for name in ("resume", "show_private"))
    job = parse(JobSpec, fields)
    from taciturn.planning.plan import check_target

    check_target(job)
    _fit(job, resume=resume, show_private=show_private)


def _fit(job: JobSpec, *, resume: bool, show_private: bool) -> None:
    """Fit, and print where the result is and what it promises."""
    from taciturn.cli.progress import FitScreen
    from taciturn.engine.training.torchrun import is_first_process
    from taciturn.llm import LLM
    from taciturn.reports.privacy import PAGE

    # Of several processes that torchrun started, one speaks.
    console = Console(quiet=not is_first_process())
    if not job.private:
        console.print(f"{_NO_PRIVACY}treat it like the data itself.", style="bold yellow")
    model = LLM(job.model, base=job.base)
    with FitScreen(console, "fit", show_private=show_private) as screen:
        model.fit(
            job.data,
            output=job.output,
            resume=resume,
            observer=screen.observer(),
            show_private=show_private and bool(job.report_to),
            **job.arguments(FitSpec, RunSpec),
        )
    report, output = model.privacy, Path(job.output).resolve()
    assert report is not None
    console.print(f"{model.policy}", style="bold", markup=False)
    lines = [f"number of units (public): {report.n_units}"]
    if report.ledger is not None:
        lines.append(f"all runs on these data and this unit together: {report.ledger}")
    if job.canaries:
        lines.append(
            f"{job.canaries} of them are canaries; what they prove: "
            f"taciturn audit {shlex.quote(job.output)}"
        )
    lines += [
        f"fitted model: {output}",
        f"privacy report: {output / PAGE}",
        "its subfolder private/ holds values computed from your rows: do not share it. Try it:",
        f"  taciturn sample {shlex.quote(job.output)} --prompt 'The patient'",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _fit_remotely(fields: dict[str, Any]) -> None:
    """Fit where the data is; without --no-wait, wait, and download if --output is given."""
    output, wait = fields.pop("output", None), fields.pop("wait", True)
    check_local(fields, "resume", "show_private", *RunSpec.model_fields)
    if fields.get("target_epsilon") == "unlimited":
        say(f"{_NO_PRIVACY}two people other than you have to approve it.", style="bold yellow")
    with connected() as client:
        from taciturn.planning.plan import TrainingPlan

        model = required(fields, "model")
        job = named_dataset(client, fields, "train").fit(model, **fields)
        say(f"job {job.id}: {job.policy}")
        worth = TrainingPlan.model_validate(job.view.plan).worth if job.view.plan else None
        if worth is not None:
            say(f"worth: {worth.text}")
        if not wait:
            if job.view.approval is not None:
                say(f"two people have to approve it: taciturn approval show {job.view.approval}")
            say(f"wait for it: taciturn job wait {job.id}")
            return
        fitted = job.fitted(progress=True)
        say(fitted.policy, style="bold")
        say(f"fitted model: {GATEWAY}{fitted.id}")
        if output is not None:
            say(f"downloaded: {fitted.download(output).resolve()}")
        say(f"Try it:\n  taciturn sample {GATEWAY}{fitted.id} --prompt 'The patient'")
