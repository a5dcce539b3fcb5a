"""Rows of a DPTrainer: which columns are trained on, and which collators are understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DefaultDataCollator,
    default_data_collator,
)

from taciturn.data.source import open_rows
from taciturn.data.tokens.ready import TokenRows
from taciturn.errors import SpecError
from taciturn.hf.privacy import PrivacyArguments

COLLATORS = (
    "DataCollatorForLanguageModeling(mlm=False), DataCollatorForSeq2Seq, DefaultDataCollator and "
    "TRL's DataCollatorForLanguageModeling"
)
_MASKS = ("completion_mask", "assistant_masks", "assistant_mask")
_FIELDS = ("text_field", "question_field", "answer_field", "messages_field")


@dataclass(frozen=True, slots=True)
class Records:
    """Rows as the engine takes them, and which columns hold their text."""

    data: object
    fields: dict[str, Any]


def records(dataset: Any, collator: Any, privacy: PrivacyArguments, text_field: str) -> Records:
    """Return the rows of a data set; no row is kept.

    Columns that are named in PrivacyArguments come first, then tokens (input_ids), the text field,
    messages, and prompt and completion. A collator only pads, which has no part in the loss.

    Raises:
        SpecError: the collator, or a column, asks for something else.
    """
    labels = check_collator(collator)
    if isinstance(dataset, str):
        raise SpecError(f"train_dataset={dataset!r:.100} is a name; load it, and give the rows")
    columns_of_text = {name: getattr(privacy, name) for name in _FIELDS if getattr(privacy, name)}
    if columns_of_text:
        return Records(dataset, columns_of_text)
    columns = _columns(dataset)
    if "input_ids" in columns:
        mask = next((name for name in _MASKS if name in columns), None)
        if mask is not None and "labels" not in columns:
            raise SpecError(
                f"column {mask} says what is predicted, and is not read here; make labels of it: "
                "input_ids where it is 1, and -100 elsewhere"
            )
        return Records(TokenRows(dataset, labels), {})
    if text_field in columns:
        return Records(dataset, {"text_field": text_field})
    if "messages" in columns:
        return Records(dataset, {"messages_field": "messages"})
    if {"prompt", "completion"} <= set(columns):
        return Records(dataset, {"question_field": "prompt", "answer_field": "completion"})
    return Records(dataset, {})  # whatever it offers, or an error that names its columns


def check_collator(collator: Any) -> bool:
    """Return whether labels of the rows count; raises SpecError for a collator of another kind."""
    if collator is None or collator is default_data_collator:
        return True
    if isinstance(collator, DataCollatorForLanguageModeling):
        if collator.mlm:
            raise SpecError(
                "data_collator has mlm=True: masked words are not what a causal language model "
                "predicts; give mlm=False, or none"
            )
        return False  # it makes labels of input_ids
    kind = type(collator)
    if kind in (DataCollatorForSeq2Seq, DefaultDataCollator):
        return True
    if kind.__name__ == "DataCollatorForLanguageModeling" and kind.__module__.startswith("trl."):
        if getattr(collator, "padding_free", False):
            raise SpecError(
                "data_collator has padding_free=True: units that share a row are in each other's "
                "gradient; leave it out"
            )
        return True
    name = getattr(collator, "__name__", kind.__name__)
    raise SpecError(
        f"data_collator={name} is not understood: it could put one record into another's row, or "
        f"change its tokens at each step; give one of {COLLATORS}, or none"
    )


def _columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if names is None:
        names = open_rows(dataset).schema.names
    if isinstance(names, dict):
        raise SpecError(
            f"the data set has splits, {', '.join(names)}; choose one: dataset['train']"
        )
    return list(names)
