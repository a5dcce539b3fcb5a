"""The second lock: what DuckDB's own parser reads in a statement must be row-wise, too.

`check.py` has checked the text with another parser. Two parsers can differ; this one decides
what will run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from taciturn.data.sql.check import FUNCTIONS
from taciturn.data.sql.session import TABLE
from taciturn.errors import PreparationError

_CLASSES = frozenset(
    {
        "BETWEEN",
        "CASE",
        "CAST",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "LAMBDA_REF",
        "OPERATOR",
        "STAR",
        "TYPE",
    }
)
LOCATION = "query_location"
"""What keys that say where in the text a node stood begin with."""

_FORBIDDEN_OPERATORS = frozenset({"GROUPING_FUNCTION", "OPERATOR_UNPACK"})
# what DuckDB's parser writes for operators, ESCAPE, INTERVAL 1 DAY and [i:j]
_SYNTAX_NAMES = """
    + - * / // % || ~~ !~~ ~~* !~~* ~~~ -> ->> ^@
    like_escape not_like_escape ilike_escape not_ilike_escape list_slice array_slice
    to_years to_quarters to_months to_weeks to_days to_hours to_minutes to_seconds
    to_milliseconds to_microseconds
"""
_SYNTAX = frozenset(_SYNTAX_NAMES.split())


def check_reading(serialized: str, field: str) -> list[dict[str, Any]]:
    """The expressions in DuckDB's reading of `SELECT ... FROM TABLE`, which comes as JSON, checked.

    Which columns their names mean is for `names.py`; `field` is how the message calls the text.
    Raises PreparationError.
    """
    reading: dict[str, Any] = json.loads(serialized)
    if reading["error"] or len(reading["statements"]) != 1:
        raise PreparationError(f"{field} is not SQL that DuckDB reads as one list of expressions")
    query = reading["statements"][0]["node"]
    extra = _beyond_a_projection(query)
    if extra is not None:
        raise PreparationError(f"{field} has a {extra}; give only row-wise expressions")
    items: list[dict[str, Any]] = query["select_list"]
    for item in items:
        for node in nodes(item):
            problem = _problem(node, alone=node is item)
            if problem is not None:
                raise PreparationError(
                    f"{field} uses {problem}, which is not on the list of row-wise constructs"
                )
    return items


def _beyond_a_projection(query: dict[str, Any]) -> str | None:
    if query["type"] != "SELECT_NODE":
        return str(query["type"])
    source = query["from_table"]
    if source["type"] != "BASE_TABLE" or source["table_name"] != TABLE or source["sample"]:
        return "FROM clause"
    for key in ("where_clause", "group_expressions", "group_sets", "having", "sample", "qualify"):
        if query.get(key):
            return key
    return "modifier" if query["modifiers"] or query["cte_map"]["map"] else None


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a serialised tree, wherever a version of DuckDB keeps it."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from nodes(child)


def _problem(node: dict[str, Any], *, alone: bool) -> str | None:
    kind = node["class"]
    if kind not in _CLASSES or node.get("type") in _FORBIDDEN_OPERATORS:
        return str(node.get("type", kind))
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        if name not in FUNCTIONS | _SYNTAX:
            return f"the function {name}"
        place = node.get("schema") or node.get("catalog")
        if place:  # DuckDB would look for a column of that name, or a schema
            return f"{place}.{name}(), where {name}(...) is meant"
        orders = (node.get("order_bys") or {}).get("orders")
        if node.get("filter") or node.get("distinct") or orders:
            return f"the function {name} as an aggregate"
    if kind == "STAR" and (node.get("alias") or not alone or _changed(node)):
        return "a star that is not alone"
    return None


def _changed(star: dict[str, Any]) -> bool:
    """True if a star leaves columns out, replaces or renames some, or is of one relation."""
    usual = {"class", "type"}
    return any(
        value for key, value in star.items() if key not in usual and not key.startswith(LOCATION)
    )
