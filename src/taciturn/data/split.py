"""One side of a data set, split by unit: which side a unit is on depends on its name and a key."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import pyarrow as pa

from taciturn.data.rows import UNIT, Rows, Skipped, filtered, surviving

_HASHES = 2**64


def is_test(key: bytes, unit: str, test_share: float) -> bool:
    """Return True if a unit is on the test side: HMAC-SHA256 of its name is below that share."""
    digest = hmac.digest(key, unit.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8]) < test_share * _HASHES


@dataclass(frozen=True, slots=True)
class Split:
    """The units of one side: about `test_share` of all are `test`, the others `train`.

    Guarantee: the side of a unit depends on its own name, the share and the key. Adding or removing
    a unit moves no other one; the same share and key always give the same sides; a larger share
    keeps on the test side whoever was there. Without the key nobody can tell a unit's side.

    Attributes:
        key: secret.
    """

    key: bytes = field(repr=False)
    side: Literal["train", "test"]
    test_share: float

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share={self.test_share} must lie in (0, 1), such as 0.1")
        if len(self.key) < 16:
            raise ValueError(f"the split key has {len(self.key)} bytes; it needs at least 16")

    def holds(self, unit: str) -> bool:
        """True if the unit is on this side."""
        return is_test(self.key, unit, self.test_share) == (self.side == "test")

    def rows_of_side(self, rows: Rows, skipped: Skipped | None = None) -> Rows:
        """The rows, which have the column UNIT, whose unit is on this side.

        A row whose side cannot be told is left out, and counted.
        """
        count = skipped or Skipped()
        parts = (surviving(batch, self._filtered, count) for batch in rows.batches)
        return Rows(rows.schema, chain.from_iterable(parts))

    def _filtered(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        units = batch.column(batch.schema.get_field_index(UNIT)).to_pylist()
        return filtered(batch, pa.array([self.holds(unit) for unit in units], pa.bool_()))
