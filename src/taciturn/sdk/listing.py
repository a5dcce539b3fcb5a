"""Lists of what a gateway has: plain lists of values, which notebooks show as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, TypeVar, overload

from pydantic import BaseModel

from taciturn.notebook.cards import card, muted, table
from taciturn.wire.datasets import GrantView
from taciturn.wire.public_datasets import PublicDatasetView
from taciturn.wire.values import PolicyLine

V = TypeVar("V", bound=BaseModel)

_LEFT_OUT = frozenset(
    {"columns", "decisions", "files", "found", "header", "plan", "report", "request", "updated_at"}
)
_SHARES = frozenset({"charged", "taken"})
_SHOWN = 50


class Listing(Sequence[V]):
    """An immutable list of wire values."""

    def __init__(self, values: Iterable[V]) -> None:
        self._values = tuple(values)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[V]:
        return iter(self._values)

    @overload
    def __getitem__(self, index: int) -> V: ...

    @overload
    def __getitem__(self, index: slice) -> Listing[V]: ...

    def __getitem__(self, index: int | slice) -> V | Listing[V]:
        if isinstance(index, slice):
            return Listing(self._values[index])
        return self._values[index]

    def columns(self) -> list[str]:
        """Names of the columns of a table of it."""
        fields = type(self._values[0]).model_fields if self._values else {}
        names = [name for name in fields if name not in _LEFT_OUT]
        return [name for name in names if any(readable(getattr(v, name)) for v in self._values)]

    def rows(self) -> list[list[str]]:
        """Return the cells of a table of it."""
        return [[_cell(value, name) for name in self.columns()] for value in self._values]

    def plain(self) -> tuple[list[str], list[list[str]]]:
        """Names and rows for programs: the same columns whatever is in them, figures in full."""
        fields = type(self._values[0]).model_fields if self._values else {}
        names = [name for name in fields if name not in _LEFT_OUT]
        return names, [[plain(getattr(value, name)) for name in names] for value in self._values]

    def __repr__(self) -> str:
        return "\n".join(["  ".join(self.columns()), *("  ".join(row) for row in self.rows())])

    def _repr_html_(self) -> str:
        more = len(self) - _SHOWN
        rest = muted(f"and {more} more") if more > 0 else ""
        title = f"{len(self)} {type(self._values[0]).__name__ if self else ''}".replace("View", "")
        names = [name.replace("_", " ") for name in self.columns()]
        return card(title, None, table(names, self.rows()[:_SHOWN]), rest)


def _cell(value: BaseModel, name: str) -> str:
    cell = getattr(value, name)
    return f"{cell:.1%}" if name in _SHARES else readable(cell)


def plain(value: Any) -> str:
    """A field's value as programs read it."""
    if isinstance(value, float):
        return repr(value)
    return value.isoformat() if hasattr(value, "isoformat") else readable(value)


def readable(value: Any) -> str:
    """A field's value as people read it."""
    if value is None or value == ():
        return ""
    if isinstance(value, PolicyLine):
        return value.text
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ", ".join(readable(part) for part in value)
    if isinstance(value, GrantView):
        return f"{value.holder} (epsilon={value.epsilon:g}, {value.charged:.1%} spent)"
    if isinstance(value, PublicDatasetView):
        return value.name
    if isinstance(value, BaseModel):
        fields = ((name, readable(getattr(value, name))) for name in type(value).model_fields)
        return ", ".join(f"{name}={text}" for name, text in fields if text)
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "strftime"):
        return f"{value:%Y-%m-%d %H:%M}"
    return str(value)
