"""Cards of a notebook: fragments of HTML that load nothing, every value escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from taciturn.notebook.style import LONGEST_CELL, STYLE, badge
from taciturn.wire.datasets import BudgetView, GrantView


def card(title: str, policy: str | None, *parts: str) -> str:
    """A framed fragment with a title, a badge, and what is below them."""
    pill = "" if policy is None else badge(policy)
    head = f'<p><span class="t-title">{escape(title)}</span>{pill}</p>'
    return f'<div class="taciturn">{STYLE}<div class="t-card">{head}{"".join(parts)}</div></div>'


def facts(rows: Mapping[str, str]) -> str:
    """Names and values, one line each."""
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items()
    )
    return f'<table class="t-table"><tbody>{lines}</tbody></table>'


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; long cells are cut."""
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(shortened(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<table class="t-table"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def muted(text: str) -> str:
    """A line of small print."""
    return f'<p class="t-muted">{escape(text)}</p>'


def bar(full: float, reserved: float = 0.0, *, open_: bool = False) -> str:
    """A bar, `full` of it filled and `reserved` of it hatched; both are shares of it."""
    full = min(max(full, 0.0), 1.0)
    reserved = min(max(reserved, 0.0), 1.0 - full)
    kind = "t-open" if open_ else "t-full"
    return (
        f'<div class="t-bar" role="img" aria-label="{full + reserved:.0%}">'
        f'<span class="{kind}" style="width:{full:.2%}"></span>'
        f'<span class="t-held" style="width:{reserved:.2%}"></span></div>'
    )


def budget_bar(budget: BudgetView | GrantView) -> str:
    """Bar of a budget: spent for good, held by jobs, and left."""
    return bar(budget.charged, budget.taken - budget.charged) + muted(budget_line(budget))


def budget_line(budget: BudgetView | GrantView) -> str:
    """The same in words."""
    reserved = max(budget.taken - budget.charged, 0.0)
    owner = f"grant of {budget.holder}:" if isinstance(budget, GrantView) else "budget"
    return (
        f"{owner} epsilon={budget.epsilon:g}, delta={budget.delta:g}: {budget.charged:.1%} spent, "
        f"{reserved:.1%} held by jobs, {max(1 - budget.taken, 0.0):.1%} left"
    )


def shortened(value: Any) -> str:
    """Value as text, cut where it is long."""
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"
