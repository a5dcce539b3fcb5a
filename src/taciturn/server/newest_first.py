"""Lists with the newest first, by pages: after which moment and id the next page begins."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, or_

from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError


def newest_first(wanted: Select[Any], table: Table, paging: Paging) -> Select[Any]:
    """A page of `wanted`, by the table's `created_at_ms` and `id`, both falling."""
    if paging.after is not None:
        wanted = wanted.where(_before(table, paging))
    ordered = wanted.order_by(table.c.created_at_ms.desc(), table.c.id.desc())
    return ordered.limit(paging.fetch)


def key(row: Any) -> str:
    """Where a row stands in such a list."""
    return f"{row.created_at_ms}:{row.id}"


def _before(table: Table, paging: Paging) -> ColumnElement[bool]:
    at, _, last = paging.name().partition(":")
    if not at.isdecimal() or len(at) > 16:
        raise ProblemError("invalid", "cursor: not one that this list gave; start without a cursor")
    same = and_(table.c.created_at_ms == int(at), table.c.id < last)
    return or_(table.c.created_at_ms < int(at), same)
