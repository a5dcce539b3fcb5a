"""Is this SQL a list of row-wise scalar expressions? Decided by sqlglot, refused by default.

Why it matters: the guarantee bounds what one privacy unit changes. An expression that looks at
other rows (an aggregate, a window, a subquery) makes one unit's text depend on another's; taking
one unit away could then change every record, and the bound would be wrong however much noise is
added. An expression with chance or a clock in it would make a second run train on other text.

The allow-list is written as examples. What is allowed is what sqlglot makes of them, and nothing
else: a new construct of a new version is refused until it has an example here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from taciturn.data.rows import folded, missing_column
from taciturn.errors import PreparationError

_FUNCTION_NAMES = """
    lower upper lcase ucase trim ltrim rtrim length len strlen reverse
    substr substring left right split_part string_split str_split string_split_regex
    decode replace translate concat concat_ws contains starts_with ends_with prefix suffix
    instr strpos position ascii unicode chr strip_accents nfc_normalize md5 sha256
    regexp_matches regexp_full_match regexp_extract regexp_replace
    json_extract json_extract_string json_extract_path json_extract_path_text
    json_exists json_valid json_type json_array_length json_keys json_contains
    json_object json_array to_json
    coalesce ifnull nullif if greatest least
    abs ceil ceiling floor round trunc sign mod pow power sqrt exp ln log10 log2
    isnan isinf isfinite
    date_part date_trunc date_diff datediff strftime strptime try_strptime
    year month day hour minute second quarter week dayofweek dayofyear last_day make_date epoch
    list_value list_extract list_element array_extract list_contains list_concat
    list_transform list_filter array_to_string struct_pack struct_extract
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
"""DuckDB's functions that read their own row only, always give the same answer for it, and cannot
make a long text out of a short one (no repeat, lpad, printf)."""

_GRAMMAR = (
    "a",
    "a.b.c",
    "'x' || a",
    "a[1]",
    "a[1:2]",
    "[a, b]",
    "{'k': a}",
    "(a)",
    "1 + 2.5 - a * b / c // d % e",
    "-a",
    "a = b AND c <> d OR NOT e",
    "a < b AND a <= b AND a > b AND a >= b",
    "a IS NULL AND b IS NOT NULL AND TRUE",
    "a IS DISTINCT FROM b AND a IS NOT DISTINCT FROM b",
    "a IN (1, 2) AND b NOT IN ('x')",
    "a BETWEEN 1 AND 2",
    "a LIKE 'x' AND a ILIKE 'x' AND a NOT LIKE 'x' ESCAPE '!'",
    "a SIMILAR TO 'x' AND a ~ 'x' AND a GLOB 'x'",
    "CASE WHEN a THEN b ELSE c END",
    "CASE a WHEN 1 THEN b END",
    "CAST(a AS VARCHAR)",
    "a::DECIMAL(3, 2)",
    "a::VARCHAR[]",
    "CAST(a AS STRUCT(k VARCHAR))",
    "TRY_CAST(a AS DATE)",
    "TRY(a)",
    "a -> '$.k[0].m'",
    "a ->> '$.k'",
    "EXTRACT(year FROM a)",
    "DATE '2020-01-01' + INTERVAL 1 DAY",
    "list_transform(a, lambda x: x.k)",
    "$$x$$",
    "e'x'",
)

_REASONS: tuple[tuple[tuple[type[Any], ...], str, str], ...] = (
    ((exp.Window, exp.AggFunc, exp.Filter, exp.Distinct), "an aggregate or window", "mixes rows"),
    ((exp.Query, exp.Subquery, exp.Exists), "a subquery", "reads other rows"),
    ((exp.Explode, exp.Unnest), "unnest", "makes several rows of one"),
    (
        (exp.Rand, exp.CurrentDate, exp.CurrentTimestamp),
        "a function of chance or time",
        "differs from run to run",
    ),
)

_CHARACTERS = re.compile("[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]*")
"""No control characters, and no halves of characters, which are not even text."""

_MOST_NODES = 20_000

_CLAUSES = {"from_": "FROM", "with_": "WITH", "order": "ORDER BY", "group": "GROUP BY"}


def check_list(text: str, columns: Sequence[str]) -> None:
    """Check what `select=` takes: `id, upper(a) AS text`, or `*`.

    Raises PreparationError that names the construct, MissingColumnError for an unknown column.
    """
    _check(text, columns, "select")


def check_single(text: str, columns: Sequence[str]) -> None:
    """Check what `privacy_unit=` takes: one expression, without an alias.

    Raises as `check_list` does.
    """
    (*rest, tree) = _parsed(text, "privacy_unit").expressions
    if rest or isinstance(tree, exp.Alias | exp.Star):
        raise _refusal("privacy_unit", text, "is not one expression", "give one, without an alias")
    _check(text, columns, "privacy_unit")


def warm_up() -> None:
    """Work the allow-list out, which takes a while once."""
    _allowed_kinds()


def _check(text: str, columns: Sequence[str], field: str) -> None:
    tree = _parsed(text, field)
    _check_clauses(tree, text, field)
    for projection in tree.expressions:
        for node in projection.walk():
            _check_node(node, text, field)
    _check_size(tree, text, field)
    aliases = [node.alias for node in tree.expressions if isinstance(node, exp.Alias)]
    parameters = [
        parameter.name for node in tree.find_all(exp.Lambda) for parameter in node.expressions
    ]
    _check_columns(tree, columns, [*aliases, *parameters], field)


def _check_size(tree: exp.Select, text: str, field: str) -> None:
    """DuckDB writes an alias out wherever it is used: forty lines that double the one before would
    be planned for ever."""
    sizes: dict[str, int] = {}
    total = 0
    for item in tree.expressions:
        size = sum(
            sizes.get(folded(node.parts[0].name), 1) if isinstance(node, exp.Column) else 1
            for node in item.walk()
        )
        total += size
        if isinstance(item, exp.Alias):
            name = folded(item.alias)
            sizes[name] = max(size, sizes.get(name, 1))  # which one is meant does not matter here
        if total > _MOST_NODES:
            raise _refusal(
                field,
                text,
                f"comes to more than {_MOST_NODES} terms once its aliases are written out",
                "use fewer names that build on each other",
            )


def _parsed(text: str, field: str) -> exp.Select:
    if not _CHARACTERS.fullmatch(text):
        raise _refusal(field, text, "holds a character that no SQL needs", "remove it")
    if text.lstrip().upper().startswith(("SELECT ", "SELECT\n", "WITH ", "FROM ")):
        raise _refusal(field, text, "is a whole query", "give only the list of expressions")
    try:
        trees = sqlglot.parse(f"SELECT {text}", read="duckdb")
    except (SqlglotError, RecursionError):
        raise _refusal(
            field, text, "is not SQL that can be read", "check commas, quotes and parentheses"
        ) from None
    if len(trees) != 1:
        raise _refusal(field, text, "holds more than one statement", "remove the semicolon")
    tree = trees[0]
    if not isinstance(tree, exp.Select):
        name = type(tree).__name__.upper()
        raise _refusal(field, text, f"holds a {name}", "give only the list of expressions")
    if not tree.expressions:
        raise _refusal(field, text, "is empty", "name at least one column")
    return tree


def _check_clauses(tree: exp.Select, text: str, field: str) -> None:
    for key, value in tree.args.items():
        if value and key != "expressions":
            clause = _CLAUSES.get(key, key.upper())
            raise _refusal(
                field,
                text,
                f"has the clause {clause}",
                "give only expressions over the row's own columns; prepare the rest beforehand",
            )


def _check_node(node: exp.Expression, text: str, field: str) -> None:
    construct = _construct(node)
    if construct is not None:
        remedy = "every expression may only read its own row: use functions such as " + (
            "lower, split_part, regexp_replace, json_extract_string, coalesce"
        )
        raise _refusal(field, text, f"uses {construct}", remedy)


def _construct(node: exp.Expression) -> str | None:
    """Reason to refuse this node, in words; None if it is allowed."""
    if isinstance(node, exp.Star):
        alone = isinstance(node.parent, exp.Select) and not any(node.args.values())
        return None if alone else f"{_excerpt(node)}, a star that is not alone"
    if isinstance(node, exp.Anonymous):
        name = node.name.lower()
        return None if name in FUNCTIONS else f"the function {name}, which is not on the list"
    if type(node) in _allowed_kinds():
        return None
    for kinds, noun, why in _REASONS:
        if isinstance(node, kinds):
            return f"{noun}, {_excerpt(node)}, which {why}"
    return f"{_excerpt(node)}, which is not on the list"


def _excerpt(node: exp.Expression) -> str:
    text = " ".join(node.sql(dialect="duckdb").split())
    return text if len(text) <= 60 else text[:57] + "..."


@lru_cache(maxsize=1)
def _allowed_kinds() -> frozenset[type[exp.Expression]]:
    """Every kind of node that the examples consist of."""
    calls = [f"{name}({', '.join('abc'[:count])})" for name in FUNCTIONS for count in (1, 2, 3)]
    kinds: set[type[exp.Expression]] = {exp.Alias}
    for example in (*_GRAMMAR, *calls):
        # a call with too few or too many arguments is no example
        with contextlib.suppress(SqlglotError):
            tree = sqlglot.parse_one(f"SELECT {example}", read="duckdb")
            kinds |= {type(node) for item in tree.expressions for node in item.walk()}
    return frozenset(kinds)


def _check_columns(
    tree: exp.Select, columns: Sequence[str], results: Collection[str], field: str
) -> None:
    """Every name could be a column's or one that the text makes; `names.py` says which it is."""
    names = {folded(name) for name in (*columns, *results)}
    for column in tree.find_all(exp.Column):
        head = column.parts[0].name
        if folded(head) not in names:
            hint = "add it to select, which is applied first" if field == "privacy_unit" else ""
            raise missing_column(head, columns, hint)


def _refusal(field: str, text: str, problem: str, remedy: str) -> PreparationError:
    return PreparationError(f"{field}={text!r} {problem}; {remedy}")
