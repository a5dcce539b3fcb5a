"""`taciturn model`: models that were fitted behind a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from taciturn.cli.gateway import Json, connected, group, say, show, show_value
from taciturn.cli.options import spec_command
from taciturn.spec import GATEWAY, POSITIONAL, Flag, SampleSpec, parse

app = group("Fitted models of a gateway: list, look at, use, download.")
Id = Annotated[str, typer.Argument(help="Id of the model.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the models that you may use, newest first."""
    with connected() as client:
        show(client.models(), as_json=as_json)


@app.command("bases")
def bases(as_json: Json = False) -> None:
    """List the base models that may be fitted."""
    with connected() as client:
        show(client.base_models(), as_json=as_json)


@app.command("show")
def show_one(id: Id, as_json: Json = False) -> None:
    """Show what a model is and what it promises."""
    with connected() as client:
        model = client.model(id.removeprefix(GATEWAY))
        if not as_json:
            say(f"{model.id}: {model.policy}", style="bold")
        show_value(model.view, as_json=as_json)


@app.command()
def download(
    id: Id,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the files.")],
) -> None:
    """Write a model's files: adapter, card, privacy report, certificate; to be used here."""
    with connected() as client:
        model = client.model(id.removeprefix(GATEWAY))
        say(f"{model.download(output).resolve()}: {model.policy}")


class _SampleOptions(SampleSpec):
    id: Annotated[str, POSITIONAL, Field(description="Id of the model.")]
    prompt: Annotated[
        tuple[str, ...], Flag(("--prompt", "-p")), Field(description="Text to continue.")
    ]


@app.command()
@spec_command(_SampleOptions)
def sample(fields: dict[str, Any]) -> None:
    """Continue prompts in one job; `taciturn sample gateway:ID` streams."""
    if not {"id", "prompt"} <= fields.keys():
        raise typer.BadParameter("id and --prompt are needed; give both")
    options = parse(_SampleOptions, fields)
    with connected() as client:
        model = client.model(options.id.removeprefix(GATEWAY))
        frame = model.sample(options.prompt, **options.arguments(SampleSpec))
        say(f"policy: {frame.attrs['policy']}", style="dim")
        for beginning, text in zip(frame["prompt"], frame["text"], strict=True):
            say(f"{beginning}{text}")
