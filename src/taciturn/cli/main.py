"""`taciturn fit | plan | sample | evaluate | demo | doctor`.

torch is imported by the commands, not by this module: `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from taciturn._version import __version__
from taciturn.cli.options import spec_command
from taciturn.errors import TaciturnError
from taciturn.spec import JobSpec

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


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="Output folder of a fit, or a base model.")],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue.")],
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus mass.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 100,
    n: Annotated[int, typer.Option("-n", help="Completions per prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Makes it repeatable.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write JSONL here, not to the screen.")
    ] = None,
) -> None:
    """Continue prompts with a fitted or a base model; streams to the screen."""
    from taciturn.cli.sample import run_sample
    from taciturn.spec import SampleSpec, parse

    spec = parse(
        SampleSpec,
        {
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "n": n,
            "seed": seed,
        },
    )
    run_sample(model, prompt, spec, device, output)


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
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the report goes.")] = Path(
        "demo-report.html"
    ),
    seed: Annotated[int, typer.Option(help="Seeds the invented notes and samples.")] = 0,
    epsilon: Annotated[float, typer.Option(help="Budget of the private fit.")] = 3.0,
) -> None:
    """The story in a few minutes: with and without privacy, side by side."""
    from taciturn.cli.demo import run_demo

    run_demo(output, seed, epsilon)


@app.command()
def doctor() -> None:
    """Check installation, device, memory and source of randomness."""
    from taciturn.cli.doctor import run_doctor

    if not run_doctor():
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
