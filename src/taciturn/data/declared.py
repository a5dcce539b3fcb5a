"""Rows that somebody else prepares: the owner says what a unit is, a practitioner what is selected.

    source -> the owner's unit, on the rows as they are -> side -> select -> text

Two things differ from one's own rows. The unit is computed before `select`, which never sees it.
And a row that cannot be used contributes nothing, instead of stopping the job: whether a row fails
is a fact about it, which a practitioner could ask for, one job after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from taciturn.data.fields import text_columns
from taciturn.data.rows import Rows, Skipped, sliced, surviving
from taciturn.data.schema_fields import Fields, choose_fields
from taciturn.data.source import open_rows
from taciturn.data.split import Split
from taciturn.data.sql.run import selected_beside_unit, with_owners_unit
from taciturn.errors import RowError, SpecError
from taciturn.spec import DataSpec

_MOST_BYTES = 16 << 20
"""Of one row, once selected; one that has more contributes nothing. So no row takes more memory
than a few hundred megabytes, whatever is in it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows that somebody has to let in, at the time when they are read.

    Attributes:
        place: where they are, as it was registered.
        locate: gives what `open_rows` takes; raises DataError where they may not be read.
    """

    place: str
    locate: Callable[[], object] = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class DeclaredText:
    """Text of a registered public data set.

    Attributes:
        declaration: who says that it is public, in words.
        locate: gives what `open_rows` takes; raises DataError where it may not be read.
    """

    name: str
    declaration: str
    locate: Callable[[], object]


@dataclass(frozen=True, slots=True, repr=False)
class DeclaredRows:
    """Rows of a registered data set.

    Attributes:
        source: what `open_rows` takes, or a Reference.
        n_units: how many units there are, as the owner declared: public, whatever is there.
        split: the side that is used; all of it without.
        limit_s: how long reading and preparing them may take; public. Without, as long as it does.
        names: of the columns of CSV files without a header line; None where they have one.
    """

    source: object
    n_units: int
    split: Split | None = None
    limit_s: float | None = None
    names: tuple[str, ...] | None = None


def declared_records(data: DeclaredRows, spec: DataSpec, skipped: Skipped) -> tuple[Rows, Fields]:
    """The records of `data`, with UNIT; there may be none.

    Args:
        spec: `privacy_unit` is the owner's expression over the source's columns.
        skipped: counts the rows that contribute nothing.

    Raises:
        DataError: any of its kinds, about the source, its columns and the SQL; never about a row.
    """
    if spec.privacy_unit is None:
        raise SpecError("rows of a registered data set need privacy_unit: what its owner protects")
    location = data.source.locate() if isinstance(data.source, Reference) else data.source
    source = open_rows(location, empty=True, skipped=skipped, names=data.names)
    rows = with_owners_unit(source, spec.privacy_unit, skipped)
    if data.split is not None:
        rows = data.split.rows_of_side(rows, skipped)
    if spec.select is not None:
        rows = selected_beside_unit(rows, spec.select, skipped)
    fields = choose_fields(rows.schema.remove(len(rows.schema) - 1), spec)  # all but UNIT
    return _texts(rows, fields, skipped), fields


def _texts(rows: Rows, fields: Fields, skipped: Skipped) -> Rows:
    """The rows that have text in every field."""

    def attempt(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows == 1 and batch.nbytes > _MOST_BYTES:
            raise RowError(f"a row has more than {_MOST_BYTES >> 20} MiB")
        (texts,) = text_columns(Rows(rows.schema, iter([batch])), fields).batches
        return texts

    schema = text_columns(Rows(rows.schema, iter(())), fields).schema
    batches = (part for batch in rows.batches for part in surviving(batch, attempt, skipped))
    return Rows(schema, sliced(batches))
