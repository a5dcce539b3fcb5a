"""The least models in which an attacker can say exactly what a unit's gradient is.

In a `Book` every token names a row and how loudly it adds to it in each parameter; the loss is
linear, so a unit's gradient is what its tokens say, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taciturn.data.tokens.store import TokenizedRecord
from taciturn.engine.privacy.types import UnitBatch

SILENT_ROWS = 96
"""Rows that no token names: what is released there is noise."""

Record = tuple[int, ...]
Unit = tuple[Record, ...]


@dataclass(frozen=True)
class Token:
    """Update by one token: `gains`, one for each parameter, on `row`."""

    row: int
    gains: tuple[float, ...]


class Book(nn.Module):
    """One table for each gain of a token; a record's loss adds up what its tokens look up."""

    def __init__(self, tokens: Sequence[Token], names: Sequence[str]) -> None:
        super().__init__()
        self.rows_V = torch.tensor([token.row for token in tokens])
        self.gains_VK = torch.tensor([token.gains for token in tokens])
        n_rows = int(self.rows_V.max()) + 1 + SILENT_ROWS
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(n_rows, 1)) for name in names}
        )

    def forward(self, batch: UnitBatch) -> Tensor:
        rows_BT = self.rows_V[batch.input_ids_BT]
        losses_B = torch.zeros(len(rows_BT))
        for k, table in enumerate(self.tables.values()):
            weights_BT = batch.loss_weights_BT * self.gains_VK[batch.input_ids_BT, k]
            values_BT = F.embedding(rows_BT, table).squeeze(-1)
            # An infinite gain must not meet the weight 0 of a token that is not predicted.
            kept_BT = torch.where(batch.loss_weights_BT != 0, weights_BT, 0.0)
            losses_B = losses_B + (values_BT * kept_BT).sum(1)
        return losses_B


class TiedBook(nn.Module):
    """One matrix that is used many times over, as an embedding tied to the head is used twice."""

    USES = 16

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__()
        self.rows_V = torch.tensor([token.row for token in tokens])
        self.gains_V = torch.tensor([token.gains[0] for token in tokens])
        n_rows = int(self.rows_V.max()) + 1 + SILENT_ROWS
        self.matrix = nn.Parameter(torch.zeros(n_rows, 2))

    def forward(self, batch: UnitBatch) -> Tensor:
        rows_BT = self.rows_V[batch.input_ids_BT]
        weights_BT = batch.loss_weights_BT * self.gains_V[batch.input_ids_BT] / self.USES
        ones_BT2 = torch.ones(*rows_BT.shape, 2)
        losses_B = torch.zeros(len(rows_BT))
        for _ in range(self.USES):
            values_BTV = F.linear(ones_BT2, self.matrix)
            values_BT = values_BTV.gather(2, rows_BT.unsqueeze(2)).squeeze(2)
            losses_B = losses_B + (values_BT * weights_BT).sum(1)
        return losses_B


class Pages:
    """Units in memory, as a step reads them."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = [[_record(tokens) for tokens in unit] for unit in units]
        self.n_units = len(units)

    def records(self, unit: int) -> list[TokenizedRecord]:
        """Return the parts that a step asks for."""
        return self._units[unit]

    def lengths(self, unit: int) -> list[int]:
        """Return the parts that dealing asks for."""
        return [len(record.input_ids) for record in self._units[unit]]


def _record(tokens: Record) -> TokenizedRecord:
    targets = np.ones(len(tokens), dtype=np.bool_)
    targets[0] = False
    return TokenizedRecord(np.array(tokens, dtype=np.int32), targets)
