"""The second lock: what DuckDB's own parser reads in a statement must be row-wise, too.

`expression.py` has checked the text with another parser. Two parsers can differ; this one decides
what will run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from taciturn.errors import PreparationError
from taciturn.preparation.expression import FUNCTIONS
from taciturn.preparation.session import TABLE

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
_FORBIDDEN_OPERATORS = frozenset({"GROUPING_FUNCTION", "OPERATOR_UNPACK"})
# what DuckDB's parser writes for operators, ESCAPE, INTERVAL 1 DAY and [i:j]
_SYNTAX_NAMES = """
    + - * / // % || ~~ !~~ ~~* !~~* ~~~ -> ->> ^@
    like_escape not_like_escape ilike_escape not_ilike_escape list_slice array_slice
    to_years to_quarters to_months to_weeks to_days to_hours to_minutes to_seconds
    to_milliseconds to_microseconds
"""
_SYNTAX = frozenset(_SYNTAX_NAMES.split())


def check_reading(serialized: str, names: Collection[str], field: str) -> None:
    """Check DuckDB's reading of `SELECT ... FROM TABLE`, as JSON.

    `names` are the columns, aliases and lambda parameters that may be referred to; `field` is how
    the message calls the expression. Raises PreparationError.
    """
    reading: dict[str, Any] = json.loads(serialized)
    if reading["error"] or len(reading["statements"]) != 1:
        raise PreparationError(f"{field} is not SQL that DuckDB reads as one list of expressions")
    query = reading["statements"][0]["node"]
    extra = _beyond_a_projection(query)
    if extra is not None:
        raise PreparationError(f"{field} has a {extra}; give only row-wise expressions")
    known = frozenset(name.lower() for name in names)
    for node in _nodes(query["select_list"]):
        problem = _problem(node, known)
        if problem is not None:
            raise PreparationError(
                f"{field} uses {problem}, which is not on the list of row-wise constructs"
            )


def check_carried(serialized: str, column: str, field: str) -> None:
    """Check that DuckDB reads the last expression as `column`, and the name nowhere else.

    So nothing before it can read, rename, replace or drop what that column holds. The statement
    must have passed `check_reading`. Raises PreparationError.
    """
    *others, last = json.loads(serialized)["statements"][0]["node"]["select_list"]
    carried = last["class"] == "COLUMN_REF" and last["column_names"] == [column]
    if not carried or column in json.dumps(others).lower():
        raise PreparationError(f"{field} names {column}, which is not its to read or to make")


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


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a serialised tree, wherever a version of DuckDB keeps it."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _problem(node: dict[str, Any], known: frozenset[str]) -> str | None:
    kind = node["class"]
    if kind not in _CLASSES or node.get("type") in _FORBIDDEN_OPERATORS:
        return str(node.get("type", kind))
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        if name not in FUNCTIONS | _SYNTAX:
            return f"the function {name}"
        orders = (node.get("order_bys") or {}).get("orders")
        if node.get("filter") or node.get("distinct") or orders:
            return f"the function {name} as an aggregate"
    if kind == "COLUMN_REF" and str(node["column_names"][0]).lower() not in known:
        return f"the name {node['column_names'][0]}"
    if kind == "STAR" and (node.get("columns") or node.get("expr") or node.get("relation_name")):
        return "a star that is not alone"
    return None
