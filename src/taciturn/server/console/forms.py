"""Fields of forms, checked by the types that the REST API checks its bodies by."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from taciturn.server.problems import ProblemError

V = TypeVar("V", bound=BaseModel)


def checked(kind: type[V], **fields: Any) -> V:
    """Return the value that these fields make; raises ProblemError `invalid`, without the fields'
    values, which may be secrets."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ProblemError("invalid", f"{name}: {message}") from None


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, between commas, blanks or ends of lines."""
    return tuple(text.replace(",", " ").split())


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text that hold something."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
