"""`taciturn export` and `taciturn push`: a fitted model in the forms that others serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from taciturn.cli.gateway import say
from taciturn.errors import SpecError

Base = Annotated[str | None, typer.Option("--base", help="Where the base is, if that has moved.")]
Weights = Literal["f32", "f16", "q8_0"]
_WEIGHTS: tuple[Weights, ...] = ("f32", "f16", "q8_0")


def export(
    model: Annotated[str, typer.Argument(help="Output folder of a fit, or a hub id of one.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="One model as transformers loads it, in fp32.")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="One GGUF file, for llama.cpp; f16 unless told.")
    ] = False,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="A GGUF file and a Modelfile; f16 unless told.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Argument(help="After --gguf or --ollama: f16, q8_0 or f32.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder; default: MODEL-merged, MODEL-gguf ..."),
    ] = None,
    base: Base = None,
    signing_key: Annotated[
        str | None,
        typer.Option(help="Key that signs what was made of what [TACITURN_SIGNING_KEY]."),
    ] = None,
) -> None:
    """Write a fitted model for vLLM, llama.cpp or Ollama; its logits are compared first."""
    from taciturn.llm import LLM

    if model in _WEIGHTS and weights is not None:  # taciturn export --gguf q8_0 OUT
        model, weights = weights, model
    choices = {"merged": merged, "gguf": gguf, "ollama": ollama}
    forms = [form for form, is_chosen in choices.items() if is_chosen]
    if len(forms) != 1:
        raise SpecError("give one of --merged, --gguf and --ollama: the form to write")
    if merged and weights is not None:
        raise SpecError(f"{weights} is for --gguf and --ollama; a merged folder is in fp32")
    kind = next((name for name in _WEIGHTS if name == (weights or "f16")), None)
    if kind is None:
        raise SpecError(f"{weights!r} is none of {', '.join(_WEIGHTS)}")
    form: Literal["merged", "gguf", "ollama"] = forms[0]  # type: ignore[assignment]
    fitted = LLM(model, base=base)
    path = fitted.export(
        output or _beside(model, form), form=form, weights=kind, signing_key=signing_key
    )
    say(f"{path}: {fitted.policy}")


def _beside(model: str, form: str) -> Path:
    """Return a folder beside the model's; for one that is on a hub, a folder here."""
    folder = Path(model).expanduser()
    home = folder.parent if folder.is_dir() else Path()
    return home / f"{folder.name}-{form}"


def push(
    model: Annotated[str, typer.Argument(help="Output folder of a fit or an export.")],
    repository: Annotated[str, typer.Argument(help="ORGANISATION/NAME; made if it is not there.")],
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made is for everybody to see.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    without_guarantee: Annotated[
        bool,
        typer.Option("--without-guarantee", help="Send a model that promises nothing, too."),
    ] = False,
) -> None:
    """Send a model's released files to the Hugging Face hub; the token is that of `hf auth login`.

    HF_TOKEN, if it is set, is used instead; HF_ENDPOINT names another hub.
    """
    from taciturn.llm import LLM

    fitted = LLM(model)
    address = fitted.push_to_hub(
        repository, private=not public, message=message, without_guarantee=without_guarantee
    )
    say(f"{address}: {fitted.policy}")
