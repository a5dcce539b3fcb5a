"""Tables that say what they are: mock, DP, no guarantee, or public. In text and in notebooks."""

from __future__ import annotations

from typing import Any, Self

import pandas as pd

from taciturn.notebook.style import LONGEST_CELL, STYLE, badge


class PolicyFrame(pd.DataFrame):  # type: ignore[misc]
    """A DataFrame whose representations begin with its policy line, `attrs["policy"]`."""

    @property
    def _constructor(self) -> type[Self]:
        return type(self)

    def __repr__(self) -> str:
        policy = self.attrs.get("policy")
        table = super().__repr__()
        return table if policy is None else f"policy: {policy}\n{table}"

    def _repr_html_(self) -> str | None:
        policy = self.attrs.get("policy")
        with pd.option_context("display.max_colwidth", LONGEST_CELL):  # pandas cuts text after 50
            table: str | None = super()._repr_html_()
        if policy is None or table is None:
            return table
        head = f'<div class="taciturn">{STYLE}<p>{badge(str(policy))}</p></div>'
        return f'{head}<div class="taciturn-table">{table}</div>'


def with_policy(frame: Any, policy: str) -> PolicyFrame:
    """The same table, carrying its policy."""
    marked = PolicyFrame(frame)
    marked.attrs["policy"] = policy
    return marked
