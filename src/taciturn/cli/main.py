"""`taciturn fit | plan | sample | evaluate | demo | doctor`.

torch is imported by the commands, not by this module: `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from taciturn._version import __version__
from taciturn.cli.options import FILE, spec_command
from taciturn.errors import TaciturnError
from taciturn.spec import DemoSpec, JobSpec, SampleJobSpec

app = typer.Typer(
    name="taciturn",
    help="Fine-tune language models on private text without making them talk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: errors that taciturn raises on purpose become one line and exit code 1."""
    try:
        app()
    except TaciturnError as error:
        errors.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt as error:
        errors.print(str(error) or "stopped", style="yellow", markup=False)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"taciturn {__version__}")
        raise typer.Exit


def _fit(fields: dict[str, Any]) -> None:
    from taciturn.cli.fit import run_fit

    try:
        run_fit(fields)
    except KeyboardInterrupt as stop:
        # Said here: the command-line library would say "Aborted" and drop the way to resume.
        errors.print(str(stop) or "stopped", style="yellow", markup=False)
        sys.exit(130)


def _plan(fields: dict[str, Any]) -> None:
    from taciturn.cli.plan import run_plan

    run_plan(fields)


def _sample(fields: dict[str, Any]) -> None:
    from taciturn.cli.sample import run_sample

    run_sample(fields)


def _demo(fields: dict[str, Any]) -> None:
    from taciturn.cli.demo import run_demo

    run_demo(fields)


app.command("fit")(
    spec_command(
        JobSpec,
        _fit,
        extra={
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
            "n_units": (
                Annotated[
                    int | None,
                    typer.Option("--n-units", help="Number of units, instead of --data."),
                ],
                None,
            )
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


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Output folder of a fit, or a base model.")],
    public_data: Annotated[str, typer.Argument(help="File that you declare public.")],
    text_field: Annotated[str | None, typer.Option(help="Column that holds the text.")] = None,
    select: Annotated[str | None, typer.Option(help="Row-wise SQL that prepares it.")] = None,
) -> None:
    """Perplexity of base and fitted model on text that is public."""
    from taciturn.cli.sample import run_evaluate

    run_evaluate(model, public_data, text_field, select)


@app.command()
def doctor(file: FILE = None) -> None:
    """Check installation, device, memory and source of randomness; with -f also that job."""
    from taciturn.cli.doctor import run_doctor

    if not run_doctor(file):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
