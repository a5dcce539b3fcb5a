"""How well a model predicts texts: all of their tokens, and the inner ones alone.

A part of what a fit gains is mere form: that a text begins after the start token as these texts do,
and that it ends. Inner tokens are those of the text from its third on, without the end token, so
that they are the same ones whatever a record begins with.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.evaluation.likelihood import unit_sums
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.types import UnitBatch
from taciturn.planning.plan import max_tokens
from taciturn.spec import DataSpec

_FORM = 2
"""Tokens at the beginning of a text that do not count as inner ones."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean nats per predicted token; `inner` without what is mere form."""

    nats: float
    inner: float
    tokens: int
    inner_tokens: int

    def as_row(self) -> dict[str, Any]:
        """For a file of records."""
        return asdict(self)


def tokenized(base: LoadedModel, texts: Sequence[str], folder: Path) -> TokenizedDataset:
    """Texts as records of their own, as the product prepares them; `folder` is made."""
    limit = max_tokens(DataSpec(), base.context_length)
    return prepare(
        list(texts), DataSpec(), base.tokenizer, limit, folder, 0, vocabulary=base.vocabulary
    )


def score(base: LoadedModel, model: Any, texts: Sequence[str]) -> Score:
    """What `model`, the base or one that was made of it, says of `texts`."""
    with tempfile.TemporaryDirectory() as folder:
        return score_records(base, model, tokenized(base, texts, Path(folder) / "data"))


def score_records(base: LoadedModel, model: Any, data: TokenizedDataset) -> Score:
    """The same for texts that are prepared; the model is left in the mode that it was in."""
    first = 0 if base.tokenizer.bos_token_id is None else 1
    scorer = partial(_sums, first, base.tokenizer.eos_token_id)
    limit = max_tokens(DataSpec(), base.context_length)
    sums_4U = unit_sums(model, data, limit, scorer, microbatch_tokens=2048)
    nats, tokens, inner, inner_tokens = sums_4U.sum(1).tolist()
    return Score(
        nats / max(1, tokens), inner / max(1, inner_tokens), round(tokens), round(inner_tokens)
    )


def _sums(first: int, end: int | None, loss: CausalLmLoss, batch: UnitBatch) -> Tensor:
    """Nats and tokens of each unit, all and inner ones; float64 [4, U]."""
    logits_BTV = loss.logits(batch)[:, :-1].float()
    ids_BT = batch.input_ids_BT[:, 1:]
    nats_BT = torch.nn.functional.cross_entropy(
        logits_BTV.transpose(1, 2), ids_BT, reduction="none"
    ).double()
    counted_BT = batch.loss_weights_BT[:, 1:] > 0
    inner_BT = counted_BT & inner_tokens(ids_BT, first, end)
    rows_4B = torch.stack(
        [part for mask in (counted_BT, inner_BT) for part in ((nats_BT * mask).sum(1), mask.sum(1))]
    )
    sums_4U = torch.zeros(4, batch.n_units, dtype=torch.float64)
    return sums_4U.index_add(1, batch.unit_of_B.cpu(), rows_4B.double().cpu())


def inner_tokens(ids_BT: Tensor, first: int, end: int | None) -> Tensor:
    """Which of the tokens after a record's first one are inner ones; bool [B, T].

    Args:
        ids_BT: tokens from a record's second on.
        first: the position of the text's first token in the record: 1 after a start token, else 0.
        end: the end token. No text becomes one.
    """
    positions_T = torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device) - first
    return (positions_T >= _FORM) & (ids_BT != (-1 if end is None else end))
