"""Text of the command line that stands for one of a few things."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from taciturn.errors import SpecError

E = TypeVar("E", bound=StrEnum)


def choice(kind: type[E], text: str | None) -> E | None:
    """The member of that value; raises SpecError with all of them."""
    if text is None:
        return None
    if text not in set(kind):
        raise SpecError(f"{text!r} is none of {', '.join(kind)}")
    return kind(text)
