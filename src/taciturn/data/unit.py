"""Name of what is protected, as reports say it: the privacy unit, and what `select` makes of its
columns.

Steps are composed if they say the same. `privacy_unit="patient"` alone would not do: of
`select="id AS patient"` and `select="row AS patient"` it is said, too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from taciturn.data.rows import folded
from taciturn.spec import ONE_RECORD, DataSpec

_WHERE = ", where "
_LONGEST = 1000  # what a certificate holds


def unit_name(spec: DataSpec, *, selected: bool = True) -> str:
    """The unit, and after "where" each of its columns that `select` does not take as it is.

    Args:
        selected: the unit is of the selected columns; without, of the rows as they are, which
            `select` does not touch.
    """
    if spec.privacy_unit is None:
        return ONE_RECORD
    definitions = (
        _definitions(spec.privacy_unit, spec.select) if selected and spec.select is not None else []
    )
    name = spec.privacy_unit + (_WHERE + "; ".join(definitions) if definitions else "")
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{name[: _LONGEST - 100]}... (cut; SHA-256 {digest})"


def without_select(name: str) -> str:
    """The unit itself, of what `unit_name` says."""
    return name.partition(_WHERE)[0]


def _definitions(unit: str, select: str) -> list[str]:
    """`name = expression` for each column of the unit that `select` makes, and what that is made
    of; SQL that cannot be read makes nothing, and is refused where it is run."""
    try:
        items = sqlglot.parse_one(f"SELECT {select}", read="duckdb").expressions
        tree = sqlglot.parse_one(f"SELECT {unit}", read="duckdb")
    except (SqlglotError, RecursionError):
        return []
    definitions = defaultdict(list)
    for item in items:
        taken_as_it_is = isinstance(item, exp.Star) or (
            isinstance(item, exp.Column) and len(item.parts) == 1
        )
        if not taken_as_it_is:
            name = item.alias_or_name
            definitions[folded(name)].append((name, item.unalias()))
    equations: dict[str, None] = {}
    waiting, visited = [unit, *_columns(tree)], set()
    while waiting:
        looked_up = folded(waiting.pop(0))
        if looked_up in visited:
            continue
        visited.add(looked_up)
        # All that may be meant: results whose names differ in case only are told apart.
        for name, expression in definitions[looked_up]:
            equations[f"{name} = {expression.sql(dialect='duckdb')}"] = None
            waiting += _columns(expression)
    return list(equations)


def _columns(tree: exp.Expr) -> list[str]:
    """Names that an expression looks up: columns, or other results of the same list."""
    return [column.parts[0].name for column in tree.find_all(exp.Column)]
