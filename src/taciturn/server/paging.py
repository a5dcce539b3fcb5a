"""Lists by pages: an opaque cursor says after which key the next page begins.

A page depends on the key alone and not on a position, so that whatever is added or removed
meanwhile, nothing that stays is shown twice or left out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query
from sqlalchemy import ColumnElement, Select, Table, and_, or_, select

from taciturn.server.problems import ProblemError
from taciturn.wire.values import Page

T = TypeVar("T")
V = TypeVar("V")

MAX_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Paging:
    """The page of a list that a request is for.

    Attributes:
        after: the last key of the page before; None for the first page.
    """

    limit: int = 50
    after: str | int | None = None

    @property
    def fetch(self) -> int:
        """Number of rows to read: one more than are shown tells whether there is a next page."""
        return self.limit + 1

    def name(self) -> str:
        """The key where it is a text; empty for the first page."""
        return self._key(str, "")

    def number(self) -> int:
        """The key where it is a number; 0 for the first page."""
        return self._key(int, 0)

    def page(
        self, rows: Sequence[T], view: Callable[[T], V], key: Callable[[T], str | int]
    ) -> Page[V]:
        """The page of what `fetch` rows were read, in the order of their keys."""
        visible_rows = rows[: self.limit]
        more = len(rows) > self.limit
        cursor = to_cursor(key(visible_rows[-1])) if more else None
        return Page(items=tuple(view(row) for row in visible_rows), next_cursor=cursor)

    def _key(self, kind: type[V], first: V) -> V:
        if self.after is None:
            return first
        if not isinstance(self.after, kind):
            raise _unknown_cursor()
        return self.after


def to_cursor(key: str | int) -> str:
    """The cursor of the page after `key`."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> str | int:
    """The key in a cursor; raises ProblemError if it is none of ours."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key: Any = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError, binascii.Error):
        raise _unknown_cursor() from None
    is_key = isinstance(key, str) or (type(key) is int and 0 <= key < 2**53)
    if not is_key or to_cursor(key) != cursor or "\x00" in str(key):
        raise _unknown_cursor()
    return key if isinstance(key, int) else str(key)


def _unknown_cursor() -> ProblemError:
    return ProblemError("invalid", "cursor: this list gave no such cursor; start without one")


async def paging(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items of a page.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=1000, description="`next_cursor` of the page before.")
    ] = None,
) -> Paging:
    """A dependency: the page that is asked for. Asynchronous, so that no thread is asked for it."""
    return Paging(limit, None if cursor is None else from_cursor(cursor))


PageQuery = Annotated[Paging, Depends(paging)]


def newest_first(query: Select[Any], table: Table, paging: Paging) -> Select[Any]:
    """A page of `query`, by the table's `created_at_ms` and `id`, both falling."""
    if paging.after is not None:
        query = query.where(_before(table, paging))
    return _newest(query, table).limit(paging.fetch)


def newest_of(
    query: Select[Any], table: Table, condition: ColumnElement[bool], paging: Paging
) -> Select[Any]:
    """A page as `newest_first` has it, of those rows of the table that a condition leaves. They are
    chosen first: what `query` joins to them is read for the page's rows alone."""
    ids = newest_first(select(table.c.id).where(condition), table, paging)
    return _newest(query.where(table.c.id.in_(ids)), table)


def position_of(row: Any) -> str:
    """Position of a row in such a list."""
    return f"{row.created_at_ms}:{row.id}"


def _newest(query: Select[Any], table: Table) -> Select[Any]:
    return query.order_by(table.c.created_at_ms.desc(), table.c.id.desc())


def _before(table: Table, paging: Paging) -> ColumnElement[bool]:
    at, _, last = paging.name().partition(":")
    if not at.isdecimal() or len(at) > 16:
        raise _unknown_cursor()
    same = and_(table.c.created_at_ms == int(at), table.c.id < last)
    return or_(table.c.created_at_ms < int(at), same)
