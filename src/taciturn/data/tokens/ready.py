"""Rows that are tokens already, where a caller says so by the type of what is given."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.data.fields import text_columns
from taciturn.data.rows import Rows, missing_column
from taciturn.data.schema_fields import Fields
from taciturn.data.source import open_rows
from taciturn.data.sql.run import with_unit
from taciturn.spec import DataSpec

_COLUMNS = ("input_ids", "labels", "attention_mask")


@dataclass(frozen=True, slots=True, repr=False)
class TokenRows:
    """Rows with a column input_ids, and perhaps labels and attention_mask.

    Attributes:
        rows: whatever `open_rows` takes.
        labels: False if labels are to be made of input_ids, whatever column of labels there is.
    """

    rows: object
    labels: bool = True


def token_records(data: TokenRows, spec: DataSpec) -> tuple[Rows, Fields]:
    """Rows of tokens as columns of JSON, with their unit; raises DataError if there are none."""
    rows = open_rows(data.rows)
    if _COLUMNS[0] not in rows.schema.names:
        raise missing_column(_COLUMNS[0], rows.schema.names)
    columns = [
        name for name in _COLUMNS if name in rows.schema.names and (data.labels or name != "labels")
    ]
    fields = Fields("tokens", tuple(columns))
    if spec.privacy_unit is not None:
        rows = with_unit(rows, spec.privacy_unit, fields.columns)
    return text_columns(rows, fields), fields
