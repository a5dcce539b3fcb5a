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
    names = sorted(dataset.name for dataset in datasets if dataset.owner == owner)
    if len(names) == 1:
        return names[0]
    choices = f"you own {', '.join(names)}" if names else f"{owner} owns no dataset"
    raise SpecError(f"{choices}; say which one: taciturn dataset synthesize NAME --epsilon 1")


def chosen_model(models: Iterable[BaseModelView], globs: Sequence[str]) -> str:
    """The smallest one that the policy allows; raises SpecError if there is none."""
    fitting = [model for model in models if any(fnmatchcase(model.name, glob) for glob in globs)]
    if not fitting:
        raise SpecError(
            f"the gateway knows no base model that the policy allows ({', '.join(globs)}); have "
            "an administrator add one, or change the policy"
        )
    return min(fitting, key=lambda model: (model.parameters, model.name)).name


def chosen_column(columns: Sequence[ColumnView] | None, unit: str) -> str:
    """`text`, or the only column of text that does not name the unit; raises SpecError if that is
    not one column."""
    texts = [column.name for column in columns or () if column.type in _TEXTS]
    if "text" in texts:
        return "text"
    words = set(re.findall(r"\w+", unit))
    candidates = [name for name in texts if name not in words]
    if len(candidates) == 1:
        return candidates[0]
    raise SpecError(
        f"columns of text besides the unit: {', '.join(candidates) or 'none'}; say which one is to "
        "be written, with --column"
    )
