"""`taciturn model`: models that were fitted behind a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taciturn.cli.gateway import Json, connected, group, say, show, show_value
from taciturn.spec import GATEWAY

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
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
) -> None:
    """Write a model's files: adapter, card, privacy report, certificate; to be used here."""
    with connected() as client:
        model = client.model(id.removeprefix(GATEWAY))
        say(f"{model.download(output).resolve()}: {model.policy}")


@app.command()
def sample(
    id: Id,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue.")],
    temperature: Annotated[float, typer.Option(help="0 is greedy decoding.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 100,
    n: Annotated[int, typer.Option("-n", "--n", help="Completions per prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> None:
    """Continue prompts in one job; `taciturn sample gateway:ID` streams."""
    with connected() as client:
        frame = client.model(id.removeprefix(GATEWAY)).sample(
            prompt, temperature=temperature, max_new_tokens=max_new_tokens, n=n, seed=seed
        )
        say(f"policy: {frame.attrs['policy']}", style="dim")
        for beginning, text in zip(frame["prompt"], frame["text"], strict=True):
            say(f"{beginning}{text}")
