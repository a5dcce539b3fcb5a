"""Command-line options made from the fields of a spec, so that the two cannot differ."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from taciturn.errors import SpecError
from taciturn.spec import load_yaml

Handler = Callable[[dict[str, Any]], None]


def spec_command(
    kind: type[BaseModel],
    handler: Handler,
    *,
    extra: dict[str, tuple[Any, Any]] | None = None,
    summary: str,
) -> Callable[..., None]:
    """A function for Typer whose options are `kind`'s fields, `-f FILE`, and `extra`.

    Flags win over the file. `handler` gets only what the user gave: no default is repeated here.

    Args:
        extra: option name -> (annotation, default), passed to the handler when given; one with the
            name of a field stands for it.
    """

    def command(**given: Any) -> None:
        file = given.pop("file")
        fields = load_yaml(file) if file is not None else {}
        fields |= {name: value for name, value in given.items() if value is not None}
        handler(fields)

    own = {name: _option(name, field) for name, field in kind.model_fields.items()}
    options = {"file": (FILE, None), **own, **(extra or {})}
    parameters = [_parameter(name, *option) for name, option in options.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = summary
    return command


FILE = Annotated[
    Path | None, typer.Option("-f", "--file", help="YAML file that holds the same fields.")
]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _option(name: str, field: FieldInfo) -> tuple[Any, None]:
    flag = "--" + name.replace("_", "-")
    default = None if field.is_required() else field.default
    shown = f" [default: {default}]" if default not in (None, False) else ""
    help_text = (field.description or "") + shown
    kind = _command_line_type(field.annotation)
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, show_default=False)
    else:
        option = typer.Option(flag, help=help_text, show_default=False)
    return Annotated[kind | None, option], None


def _command_line_type(annotation: Any) -> Any:
    """The type Typer parses; anything with choices stays text, which the spec then checks."""
    options = [annotation]
    while any(get_origin(option) in (Union, types.UnionType, Annotated) for option in options):
        options = [
            inner
            for option in options
            for inner in (
                get_args(option)[:1] if get_origin(option) is Annotated else get_args(option)
            )
            or (option,)
        ]
    options = [option for option in options if option is not type(None)]
    if any(get_origin(option) is Literal for option in options):
        return str
    if any(get_origin(option) is tuple for option in options):
        return list[str]
    if len(options) != 1:
        raise SpecError(f"no command-line type for {annotation}")
    return options[0]
