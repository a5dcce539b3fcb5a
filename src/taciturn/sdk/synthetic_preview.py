"""Defaults of a DP-synthetic preview, where its owner does not choose: public facts decide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from taciturn.errors import SpecError
from taciturn.wire.datasets import ColumnView, DatasetView
from taciturn.wire.models import BaseModelView

_TEXTS = frozenset({"string", "large_string", "string_view"})


def chosen_dataset(datasets: Iterable[DatasetView], owner: str) -> str:
    """The one that the caller owns; raises SpecError if there is none, or more than one."""
    names = sorted(each.name for each in datasets if each.owner == owner)
    if len(names) == 1:
        return names[0]
    found = f"you own {', '.join(names)}" if names else f"{owner} owns no dataset"
    raise SpecError(f"{found}; say which one: taciturn dataset synthesize NAME --epsilon 1")


def chosen_model(models: Iterable[BaseModelView], allowed: Sequence[str]) -> str:
    """The smallest one that the policy allows; raises SpecError if there is none."""
    fitting = [each for each in models if any(fnmatchcase(each.name, glob) for glob in allowed)]
    if not fitting:
        raise SpecError(
            f"the gateway knows no base model that the policy allows ({', '.join(allowed)}); have "
            "an administrator add one, or change the policy"
        )
    return min(fitting, key=lambda each: (each.parameters, each.name)).name


def chosen_column(columns: Sequence[ColumnView] | None, unit: str) -> str:
    """`text`, or the only column of text that does not name the unit; raises SpecError if that is
    not one column."""
    texts = [each.name for each in columns or () if each.type in _TEXTS]
    if "text" in texts:
        return "text"
    words = set(re.findall(r"\w+", unit))
    left = [name for name in texts if name not in words]
    if len(left) == 1:
        return left[0]
    raise SpecError(
        f"columns of text besides the unit: {', '.join(left) or 'none'}; say which one is to be "
        "written, with --column"
    )
