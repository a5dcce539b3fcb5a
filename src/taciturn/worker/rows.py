"""The rows of a job: where they are, the owner's unit, and the side of the split."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from taciturn.data.declared import DeclaredRows, Reference
from taciturn.data.split import Split
from taciturn.errors import SpecError
from taciturn.spec import DataSpec
from taciturn.wire.jobs import DataRef
from taciturn.wire.worker import SourceRef

S = TypeVar("S", bound=DataSpec)


def declared(
    source: SourceRef | None,
    data: DataRef,
    n_units: int,
    open_rows: Callable[[], object],
    limit_s: float | None = None,
) -> DeclaredRows:
    """The rows that `data` means; raises SpecError if the gateway has not said where they are.

    Args:
        limit_s: how long reading and preparing them may take.
        open_rows: returns a source once rows are read; raises where they may not be.
    """
    if source is None:
        raise SpecError("the job has data, and its assignment has no source")
    part = data.part
    split = None
    if part is not None:
        split = Split(bytes.fromhex(source.split_key), part.side, part.test_share)
    reference = Reference(source.source, open_rows)
    return DeclaredRows(reference, n_units, split, limit_s, source.names)


def with_owners_terms(spec: S, source: SourceRef | None, data: DataRef) -> S:
    """The spec with the owner's unit and the practitioner's selection, which it cannot name."""
    if source is None:
        raise SpecError("the job has data, and its assignment has no source")
    return spec.model_copy(update={"privacy_unit": source.unit, "select": data.select})
