"""The token batches that all variants train on: the same tokens for each, in the same order.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taciturn.data.tokens.encoding import EncodedRecords
from taciturn.data.tokens.store import TokenizedDataset, TokenWriter

IGNORED = -100
# 0 pads, 1 and 2 open and close a text.
_FIRST_TOKEN = 3


@dataclass(frozen=True)
class Batch:
    """One step's records. A record's first token is no target, the others all are.

    Attributes:
        index: which batch of its workload this is.
        records: token ids of each record.
        device: of its tensors.
    """

    index: int
    records: tuple[NDArray[np.int32], ...]
    device: str = "cpu"

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(len(record) for record in self.records)

    @cached_property
    def input_ids_BT(self) -> Tensor:
        """Padded on the right, to the longest record."""
        rows = [torch.from_numpy(record.astype(np.int64)) for record in self.records]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)

    @cached_property
    def next_ids_BT(self) -> Tensor:
        """What each position is to predict, IGNORED at a record's last token and at padding."""
        shifted_BT = torch.nn.functional.pad(self.input_ids_BT[:, 1:], (0, 1))
        return shifted_BT.masked_fill(~self._predicts_BT, IGNORED)

    @cached_property
    def weights_BT(self) -> Tensor:
        """One over the record's number of targets, at the positions that predict one; fp32."""
        predicts_BT = self._predicts_BT
        return predicts_BT.float() / predicts_BT.sum(1, keepdim=True).clamp(min=1)

    @cached_property
    def _predicts_BT(self) -> Tensor:
        last_B1 = torch.tensor([[len(record) - 1] for record in self.records])
        return (torch.arange(self.input_ids_BT.shape[1]) < last_B1).to(self.device)

    def parts(self, size: int) -> list[Batch]:
        """The same records, `size` at a time; all at once where 0."""
        size = size or len(self.records)
        starts = range(0, len(self.records), size)
        return [Batch(self.index, self.records[at : at + size], self.device) for at in starts]


@dataclass(frozen=True)
class Workload:
    """All batches of a measurement, each of the same number of sequences."""

    batches: tuple[Batch, ...]

    @classmethod
    def random(
        cls,
        lengths: Sequence[Sequence[int]],
        vocabulary: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> Workload:
        """Random tokens; `lengths` holds each batch's record lengths."""
        random = np.random.default_rng(seed)
        batches = [
            [random.integers(_FIRST_TOKEN, vocabulary, length, dtype=np.int32) for length in row]
            for row in lengths
        ]
        return cls(
            tuple(Batch(index, tuple(records), device) for index, records in enumerate(batches))
        )

    @property
    def sequences(self) -> int:
        """Sequences of one batch."""
        return len(self.batches[0].records)

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        return max(len(record) for batch in self.batches for record in batch.records)

    def blocks(self, size: int) -> list[tuple[Batch, ...]]:
        """Consecutive batches, `size` at a time."""
        starts = range(0, len(self.batches), size)
        return [self.batches[start : start + size] for start in starts]

    def units_of(self, batch: Batch, unit_size: int) -> NDArray[np.int64]:
        """The units of `dataset(unit_size)` that are this batch."""
        count = self.sequences // unit_size
        return np.arange(batch.index * count, (batch.index + 1) * count)

    def dataset(self, unit_size: int) -> TokenizedDataset:
        """The same records as the engine reads them, from disk; `unit_size` in a row are a unit."""
        if self.sequences % unit_size:
            raise ValueError(f"{self.sequences} sequences do not make whole units of {unit_size}")
        # The memory map outlives its file: nothing is left behind.
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), unit_size)
            return TokenizedDataset.open(Path(folder))

    def _write(self, folder: Path, unit_size: int) -> None:
        records = [record for batch in self.batches for record in batch.records]
        lengths = np.array([len(record) for record in records], dtype=np.int64)
        targets = np.ones(lengths.sum(), dtype=np.bool_)
        targets[np.cumsum(lengths) - lengths] = False
        writer = TokenWriter(folder)
        writer.add(
            EncodedRecords(np.concatenate(records), targets, lengths),
            np.arange(len(records)) % unit_size == 0,
        )
        writer.close("benchmark")
