"""`taciturn fit | plan | sample | evaluate | audit | extract | membership | synthesize | ...`.

torch is imported by the commands, not by this module, and only once what was typed has been read:
`--help` and a misspelt field are answered at once, not after the seconds that it takes to import.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

import taciturn
from taciturn._version import __version__
from taciturn.cli import admin, certificate, dataset, jobs, ledger, model, people, session, terms
from taciturn.cli.gateway import is_remote
from taciturn.cli.options import FILE, spec_command
from taciturn.errors import ProcessError, SpecError, TaciturnError
from taciturn.spec import (
    AuditJobSpec,
    DemoSpec,
    DownstreamJobSpec,
    EvaluateJobSpec,
    ExtractJobSpec,
    JobSpec,
    MembershipJobSpec,
    SampleJobSpec,
    SynthesizeSpec,
    parse,
)

app = typer.Typer(
    name="taciturn",
    help="Fine-tune language models on private text without making them talk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(certificate.app, name="cert")
app.add_typer(ledger.app, name="ledger")
app.command()(session.login)
app.command()(session.logout)
app.command()(session.whoami)
app.command()(session.password)
app.add_typer(dataset.app, name="dataset")
app.add_typer(terms.policy, name="policy")
app.add_typer(terms.grant, name="grant")
app.command()(terms.budget)
app.add_typer(jobs.job, name="job")
app.add_typer(jobs.approval, name="approval")
app.add_typer(model.app, name="model")
app.add_typer(people.user, name="user")
app.add_typer(admin.admin, name="admin")
app.add_typer(people.token, name="token")
app.add_typer(people.incident, name="incident")
app.command()(people.audit_log)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: errors that taciturn raises on purpose become one line and exit code 1."""
    first = os.environ.get("RANK", "0") == "0"
    warnings.showwarning = _show_warning
    _write_what_can_be()
    try:
        app()
    except TaciturnError as error:
        if first or not isinstance(error, ProcessError):
            errors.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    except TimeoutError as error:
        errors.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "taciturn"):
            raise
        errors.print(
            f"error: this needs {missing}, which is not installed; install taciturn[engine] for "
            "work on this machine, taciturn[server] for a gateway or a ledger, taciturn[verify] "
            "for certificates",
            style="bold red",
            markup=False,
        )
        sys.exit(1)
    except KeyboardInterrupt as error:
        errors.print(str(error) or "stopped", style="yellow", markup=False)
        sys.exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What this package has to say is one line; a library's warning names its place, as ever."""
    if Path(filename).is_relative_to(Path(taciturn.__file__).parent):
        errors.print(f"note: {message}", style="yellow", markup=False)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        (file or sys.stderr).write(text)


def _write_what_can_be() -> None:
    """What a terminal or a file name's bytes cannot be written as becomes "?", and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"taciturn {__version__}")
        raise typer.Exit


def _fit(fields: dict[str, Any]) -> None:
    if is_remote(fields.get("data")):
        from taciturn.cli.remote import run_remote_fit

        run_remote_fit(fields)
        return
    _only_remote(fields, "wait", "name", "purpose", "held_out")
    resume, show_private = (bool(fields.pop(name, False)) for name in ("resume", "show_private"))
    job = parse(JobSpec, fields)
    from taciturn.planning.plan import check_target

    check_target(job.fit_spec())
    from taciturn.cli.fit import run_fit

    try:
        run_fit(job, resume=resume, show_private=show_private)
    except KeyboardInterrupt as stop:
        # Said here: the command-line library would say "Aborted" and drop the way to resume.
        if os.environ.get("RANK", "0") == "0":
            errors.print(str(stop) or "stopped", style="yellow", markup=False)
        sys.exit(130)


def _only_remote(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        if fields.pop(name, None) is not None:
            raise SpecError(f"{name} is for data behind a gateway; leave it out")


def _plan(fields: dict[str, Any]) -> None:
    if is_remote(fields.get("data")):
        from taciturn.cli.remote import run_remote_plan

        run_remote_plan(fields)
        return
    _only_remote(fields, "held_out")
    n_units, verbose = fields.pop("n_units", None), fields.pop("verbose", False)
    if n_units is None and "data" not in fields:
        raise SpecError("plan needs --data, or --n-units: how many privacy units there are")
    job = parse(JobSpec, {"data": "(not read)", **fields})
    from taciturn.cli.plan import run_plan

    run_plan(job, n_units=n_units, verbose=verbose)


def _sample(fields: dict[str, Any]) -> None:
    job = parse(SampleJobSpec, fields)
    from taciturn.cli.sample import run_sample

    run_sample(job)


def _evaluate(fields: dict[str, Any]) -> None:
    if is_remote(fields.get("model")):
        from taciturn.cli.remote import run_remote_evaluate

        run_remote_evaluate(fields)
        return
    _only_remote(fields, "held_out", "purpose")
    planned, n_units = fields.pop("plan", False), fields.pop("n_units", None)
    if planned:
        from taciturn.cli.evaluate import run_evaluation_plan

        run_evaluation_plan(parse(EvaluateJobSpec, {"data": "(not read)", **fields}), n_units)
        return
    if n_units is not None:
        raise SpecError("n_units goes with --plan; leave it out, the data's units are counted")
    job = parse(EvaluateJobSpec, fields)
    from taciturn.cli.evaluate import run_evaluate

    run_evaluate(job)


def _audit(fields: dict[str, Any]) -> None:
    job = parse(AuditJobSpec, fields)
    from taciturn.cli.audit import run_audit

    run_audit(job)


def _synthesize(fields: dict[str, Any]) -> None:
    job = parse(SynthesizeSpec, fields)
    from taciturn.cli.evaluate import run_synthesize

    run_synthesize(job)


def _downstream(fields: dict[str, Any]) -> None:
    job = parse(DownstreamJobSpec, fields)
    from taciturn.cli.evaluate import run_downstream

    run_downstream(job)


def _extract(fields: dict[str, Any]) -> None:
    from taciturn.cli.attacks import run_extract

    run_extract(fields)


def _membership(fields: dict[str, Any]) -> None:
    job = parse(MembershipJobSpec, fields)
    from taciturn.cli.attacks import run_membership

    run_membership(job)


def _demo(fields: dict[str, Any]) -> None:
    spec = parse(DemoSpec, fields)
    from taciturn.data.filesystem import check_output_file

    check_output_file(Path(spec.output).expanduser(), replace=True)
    from taciturn.cli.demo import run_demo

    run_demo(spec)


HELD_OUT = (
    Annotated[
        float | None,
        typer.Option("--held-out", help="A gateway's data: share of units that fit leaves out."),
    ],
    None,
)
PURPOSE = (
    Annotated[
        str | None,
        typer.Option("--purpose", help="A gateway's data: one line for whoever has to approve it."),
    ],
    None,
)
app.command("fit")(
    spec_command(
        JobSpec,
        _fit,
        extra={
            "held_out": HELD_OUT,
            "purpose": PURPOSE,
            "name": (
                Annotated[
                    str | None, typer.Option("--name", help="A gateway's data: name of the model.")
                ],
                None,
            ),
            "wait": (
                Annotated[
                    bool | None,
                    typer.Option(
                        "--wait/--no-wait",
                        help="A gateway's data: wait for the job. [default: wait]",
                        show_default=False,
                    ),
                ],
                None,
            ),
            "resume": (
                Annotated[
                    bool | None,
                    typer.Option("--resume", help="Go on with the interrupted run in --output."),
                ],
                None,
            ),
            "show_private": (
                Annotated[
                    bool | None,
                    typer.Option(
                        "--show-private",
                        help="Owner only: show training loss and clipping, which are private.",
                    ),
                ],
                None,
            ),
        },
        summary="Fine-tune a model on private text.",
    )
)
app.command("plan")(
    spec_command(
        JobSpec,
        _plan,
        extra={
            "held_out": HELD_OUT,
            "n_units": (
                Annotated[
                    int | None,
                    typer.Option("--n-units", help="Number of units, instead of --data."),
                ],
                None,
            ),
            "verbose": (
                Annotated[
                    bool | None,
                    typer.Option("--verbose", help="Also show how per-unit gradients are kept."),
                ],
                None,
            ),
        },
        summary="Show what fit would do and cost, and nearby choices, before anything runs.",
    )
)


app.command("sample")(
    spec_command(
        SampleJobSpec,
        _sample,
        extra={
            "model": (
                Annotated[
                    str | None, typer.Argument(help="Output folder of a fit, or a base model.")
                ],
                None,
            ),
            "prompt": (
                Annotated[
                    list[str] | None,
                    typer.Option("--prompt", "-p", help="Text to continue; may be repeated."),
                ],
                None,
            ),
            "n": (
                Annotated[int | None, typer.Option("-n", "--n", help="Completions per prompt.")],
                None,
            ),
            "output": (
                Annotated[
                    str | None,
                    typer.Option("--output", "-o", help="Write JSONL here, not to the screen."),
                ],
                None,
            ),
        },
        summary="Continue prompts with a fitted or a base model; streams to the screen.",
    )
)
app.command("demo")(
    spec_command(
        DemoSpec,
        _demo,
        extra={
            "output": (
                Annotated[
                    str | None, typer.Option("--output", "-o", help="Where the report goes.")
                ],
                None,
            )
        },
        summary="The story in a few minutes: with and without privacy, side by side.",
    )
)


MODEL = (
    Annotated[
        str | None, typer.Argument(help="Output folder of a fit, a base model, or gateway:ID.")
    ],
    None,
)
OUTPUT = (
    Annotated[str | None, typer.Option("--output", "-o", help="Parquet file to write.")],
    None,
)
app.command("evaluate")(
    spec_command(
        EvaluateJobSpec,
        _evaluate,
        extra={
            "model": MODEL,
            "data": (
                Annotated[
                    str | None, typer.Argument(help="File to judge it on; public without epsilon.")
                ],
                None,
            ),
            "held_out": (
                Annotated[
                    float | None,
                    typer.Option("--held-out", help="A gateway's data: share that fit left out."),
                ],
                None,
            ),
            "plan": (
                Annotated[
                    bool | None,
                    typer.Option(
                        "--plan",
                        help="Only say how exact it would be for --target-epsilon; spends nothing.",
                    ),
                ],
                None,
            ),
            "n_units": (
                Annotated[
                    int | None,
                    typer.Option(help="With --plan: how many privacy units would be judged here."),
                ],
                None,
            ),
            "purpose": PURPOSE,
        },
        summary="Perplexity, token accuracy and samples of base and fitted model, beside a text.",
    )
)
app.command("audit")(
    spec_command(
        AuditJobSpec,
        _audit,
        extra={
            "model": (
                Annotated[
                    str | None, typer.Argument(help="Output folder of a fit with --canaries.")
                ],
                None,
            )
        },
        summary="Attack a fitted model: a lower bound on its epsilon, beside what is promised.",
    )
)
app.command("synthesize")(
    spec_command(
        SynthesizeSpec,
        _synthesize,
        extra={
            "model": MODEL,
            "n": (Annotated[int | None, typer.Option("-n", "--n", help="Records to write.")], None),
            "output": OUTPUT,
        },
        summary="Write a synthetic data set to Parquet, with the guarantee in its metadata.",
    )
)
app.command("downstream")(
    spec_command(
        DownstreamJobSpec,
        _downstream,
        extra={
            "model": MODEL,
            "synthetic": (
                Annotated[str | None, typer.Argument(help="Labelled synthetic text.")],
                None,
            ),
            "test": (Annotated[str | None, typer.Argument(help="Labelled real text.")], None),
        },
        summary="Train a classifier on synthetic text, test it on real text.",
    )
)


app.command("extract")(
    spec_command(
        ExtractJobSpec,
        _extract,
        extra={
            "model": MODEL,
            "alternatives": (
                Annotated[
                    list[str] | None,
                    typer.Option(
                        "--alternatives",
                        help="With --template FIELD=LIST for each field, LIST an embedded list or "
                        "a text file; without, such a LIST or whole secrets. May be repeated.",
                    ),
                ],
                None,
            ),
            "output": (
                Annotated[
                    str | None, typer.Option("--output", "-o", help="JSON file for the result.")
                ],
                None,
            ),
        },
        summary="Does a model tell a secret? Rank, exposure and samples, beside the base model.",
    )
)
app.command("membership")(
    spec_command(
        MembershipJobSpec,
        _membership,
        extra={
            "model": MODEL,
            "members": (
                Annotated[str | None, typer.Argument(help="Units of the training data.")],
                None,
            ),
            "non_members": (
                Annotated[str | None, typer.Argument(help="Units like them that were not.")],
                None,
            ),
        },
        summary="Owner only: can the model tell who was in its training data?",
    )
)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded database, files and workspaces.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="postgresql+psycopg://...; with a password, set the variable instead."),
    ] = None,
    storage_url: Annotated[str | None, typer.Option(help="Object store, s3://...")] = None,
    public_url: Annotated[str | None, typer.Option(help="How clients reach the gateway.")] = None,
    launcher: Annotated[str | None, typer.Option(help="local or kubernetes.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that serve; by default, one for each core.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look whether it can serve; exit code 1 if not.")
    ] = False,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring the database to this version, and end.")
    ] = False,
    new_admin_token: Annotated[
        bool,
        typer.Option(
            "--new-admin-token", help="Where the first one was lost: print another one, and end."
        ),
    ] = False,
) -> None:
    """Serve the gateway: private data stays here. Each option is also a variable TACITURN_*."""
    from taciturn.cli.serve import run_serve

    given = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "database_url": database_url,
        "storage_url": storage_url,
        "public_url": public_url,
        "launcher": launcher,
        "processes": processes,
    }
    run_serve(given, check=check, migrate=migrate, new_admin_token=new_admin_token)


@app.command()
def doctor(
    file: FILE = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Attack the engine: does it keep what it promises?")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(help="Attack it at the settings of this fitted model's folder."),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Check the cluster that a gateway runs jobs in.")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option(help="With --kubernetes: the gateway's namespace.")
    ] = None,
) -> None:
    """Check installation, device, memory and source of randomness; with -f also that job."""
    if kubernetes:
        from taciturn.cli.doctor_kubernetes import run_doctor_kubernetes

        if not run_doctor_kubernetes(namespace):
            raise typer.Exit(1)
        return
    from taciturn.cli.doctor import run_doctor

    if not run_doctor(file, audit=audit, model=model):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
