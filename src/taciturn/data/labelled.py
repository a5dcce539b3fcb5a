"""Texts with labels, grouped by privacy unit: what a classifier is trained or tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taciturn.data.bounding import FIRST, grouped, single_record_units
from taciturn.data.fields import text_columns
from taciturn.data.rows import missing_column
from taciturn.data.schema_fields import Fields, choose_fields
from taciturn.data.source import open_rows
from taciturn.data.sql.run import selected, with_unit
from taciturn.spec import DataSpec


@dataclass(frozen=True, slots=True, repr=False)
class LabelledTexts:
    """Records of units that lie side by side. Private if the data are.

    Attributes:
        unit_of_N: the unit of each record, from 0, without gaps.
    """

    texts: list[str]
    labels: list[str]
    unit_of_N: NDArray[np.int64]


def read_labelled(data: object, spec: DataSpec, label_field: str, spill: Path) -> LabelledTexts:
    """Read texts and labels; at most `spec.max_records_per_unit` records of a unit.

    Args:
        data: whatever `open_rows` takes.
        label_field: column of labels, as text.
        spill: an existing private folder.

    Raises:
        DataError: any of its kinds; no message quotes a row.
    """
    rows = open_rows(data)
    if spec.select is not None:
        rows = selected(rows, spec.select)
    (text, *_) = choose_fields(rows.schema, spec).columns
    if label_field not in rows.schema.names:
        raise missing_column(label_field, rows.schema.names)
    fields = Fields("answer", (text, label_field))
    if spec.privacy_unit is None:
        batches = single_record_units(text_columns(rows, fields))
    else:
        rows = text_columns(with_unit(rows, spec.privacy_unit, fields.columns), fields)
        batches = grouped(rows, spec.max_records_per_unit, 0, spill)
    texts: list[str] = []
    labels: list[str] = []
    first: list[bool] = []
    for batch in batches:
        texts += batch.column(0).to_pylist()
        labels += batch.column(1).to_pylist()
        first += batch.column(batch.schema.get_field_index(FIRST)).to_pylist()
    return LabelledTexts(texts, labels, np.cumsum(first) - 1)
