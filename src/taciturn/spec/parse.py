"""Specs read from arguments or YAML; errors say value, bound and remedy."""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from taciturn.errors import PrivacyParameterError, SpecError, UnknownFieldError
from taciturn.spec.base import S, Spec

_PRIVACY_FIELDS = frozenset({"target_epsilon", "delta", "l2_clip_norm", "batch_size"})


def parse(kind: type[S], arguments: dict[str, Any]) -> S:
    """Validate `arguments` into a spec; raises SpecError with value, bound and remedy."""
    unknown = [name for name in arguments if name not in kind.model_fields]
    if unknown:
        raise UnknownFieldError(_unknown_message(unknown[0], list(kind.model_fields)))
    try:
        return kind(**arguments)
    except ValidationError as error:
        raise _spec_error(kind, error) from None


def take(kind: type[S], arguments: dict[str, Any]) -> S:
    """Remove the fields of `kind` from `arguments`, and parse them."""
    names = arguments.keys() & kind.model_fields.keys()
    return parse(kind, {name: arguments.pop(name) for name in names})


def check_local(arguments: dict[str, Any], *names: str) -> None:
    """Remove `names`, which a gateway's model or dataset has no use for; raises if one is set."""
    for name in names:
        value = arguments.pop(name, None)
        if value is not None and value is not False:
            raise SpecError(f"{name} is for data on this machine; leave it out for a gateway's")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read the fields of a job from YAML; raises SpecError if it is not one mapping."""
    import yaml  # most commands read none

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"job file {path} cannot be read: {error.strerror}") from None
    except ValueError:  # of bytes, and of a path with a null in it
        raise SpecError(f"job file {path} is not UTF-8 text; -f takes YAML") from None
    try:
        fields = yaml.safe_load(text)
    except Exception as error:
        # Also a date of no calendar, or brackets a thousand deep. And not what the parser says: it
        # quotes the line, which may hold a secret.
        raise SpecError(f"job file {path} is not YAML{_place(error)}; mend it there") from None
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise SpecError(f"job file {path} must hold `field: value` lines")
    return fields


def _unknown_message(name: str, fields: list[str]) -> str:
    near = difflib.get_close_matches(name, fields, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(fields)}"
    return f"unknown field {name!r}; {remedy}"


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)  # of yaml.MarkedYAMLError
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _quoted(value: object) -> str:
    """Return a value as it was given, at most a line of it: what a file nests has no end."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    try:
        return short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"({type(value).__name__})"


def _spec_error(kind: type[Spec], error: ValidationError) -> SpecError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return SpecError(f"{where} is missing; give it")
    field = kind.model_fields.get(str(first["loc"][0])) if where else None
    if field is not None and not field.repr:
        return SpecError(f"{first['loc'][0]}: {first['msg']}; write text in quotes")
    message = first["msg"].removeprefix("Value error, ")
    text = f"{where}={_quoted(first['input'])}: {message}" if where else message
    private = any(field in text for field in _PRIVACY_FIELDS)
    return (PrivacyParameterError if private else SpecError)(text)
