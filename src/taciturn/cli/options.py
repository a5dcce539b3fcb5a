"""Commands made from the fields of specs, and text that stands for a choice or a moment."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import Field
from pydantic.fields import FieldInfo

from taciturn.cli.gateway import answering, json_option
from taciturn.errors import SpecError
from taciturn.spec import Flag, ModelSpec, Spec, load_yaml

if TYPE_CHECKING:
    from taciturn.llm import LLM

E = TypeVar("E", bound=StrEnum)

_AGO = re.compile(r"([0-9]{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

File = Annotated[
    Path | None, typer.Option("-f", "--file", help="YAML file that holds the same fields.")
]
HeldOut = Annotated[
    float | None, Field(description="A gateway's data: share of units that fit leaves out.")
]
Purpose = Annotated[
    str | None, Field(description="A gateway's data: one line for whoever has to approve it.")
]


def spec_command(
    *kinds: type[Spec], keys: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function of fields: the options are `-f FILE` and the fields of `kinds`.

    Flags win over the file. The function gets only what the user gave: no default is repeated here.
    With `keys`, of which the help of `--json` tells, it also gets what prints its answer as JSON.
    """

    def decorate(handler: Callable[..., None]) -> Callable[..., None]:
        def command(*, file: Path | None, as_json: bool | None = None, **flags: Any) -> None:
            fields = load_yaml(file) if file is not None else {}
            fields |= {name: value for name, value in flags.items() if value is not None}
            if keys is None:
                handler(fields)
                return
            with answering(as_json=bool(as_json)) as answer:
                handler(fields, answer)

        options = {name: field for kind in kinds for name, field in kind.model_fields.items()}
        annotations = {"file": File, **{name: _option(name, options[name]) for name in options}}
        if keys is not None:
            annotations["as_json"] = Annotated[bool | None, json_option(keys)]
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=a, default=None)
                for name, a in annotations.items()
            ]
        )
        command.__annotations__ = annotations
        command.__name__, command.__doc__ = handler.__name__, handler.__doc__
        return command

    return decorate


def open_model(job: ModelSpec) -> LLM:
    """Return the model that a command is about."""
    from taciturn.llm import LLM

    return LLM(job.model, base=job.base, device=job.device)


def check_gateway(fields: dict[str, Any], *names: str) -> None:
    """Remove `names`, which have no use on this machine; raises SpecError if one is set."""
    for name in names:
        if fields.pop(name, None) is not None:
            raise SpecError(f"{name} is for data behind a gateway; leave it out")


def choice(kind: type[E], text: str | None) -> E | None:
    """Return the member of that value; raises SpecError with all of them."""
    if text is None:
        return None
    if text not in set(kind):
        raise SpecError(f"{text!r} is none of {', '.join(kind)}")
    return kind(text)


def moment_of(name: str, text: str | None) -> datetime | None:
    """Read a date, a time (of UTC, unless it has a zone), or so many minutes, hours or days ago.

    Raises:
        SpecError: it is none of these.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f"{name}={text!r} is no moment; write 2026-03-01, 2026-03-01T12:30Z, or 90m, 12h, 7d "
            "for so long ago"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _option(name: str, field: FieldInfo) -> Any:
    """Return the annotation that Typer reads."""
    kind = _command_line_type(field.annotation)
    flag = next((mark for mark in field.metadata if isinstance(mark, Flag)), None)
    text, default = field.description or "", field.default
    if flag is not None and not flag.names:
        return Annotated[kind | None, typer.Argument(help=text, show_default=False)]
    if isinstance(default, str | int | float) and default is not False:
        text += f" [default: {default}]"
    spelling = "--" + name.replace("_", "-")
    if flag is not None:
        names = flag.names
    else:
        names = (f"{spelling}/--no-{spelling[2:]}" if kind is bool else spelling,)
    return Annotated[kind | None, typer.Option(*names, help=text, show_default=False)]


def _command_line_type(annotation: Any) -> Any:
    """Return the type Typer parses; what has choices stays text, which the spec then checks."""
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
