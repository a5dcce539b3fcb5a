"""Likelihood of a text under a model: nats and hits per token, exact and not noised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord
from taciturn.engine.generation.sample import begins, check_tokens
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.privacy.verification import losses_same_in_company
from taciturn.engine.training.batch import (
    BatchLimits,
    bucket_length,
    collate,
    microbatches,
    padded_size,
    widths,
)
from taciturn.errors import SpecError

# Units of one microbatch: the number of those to be scored can be private, and must not set it.
_UNITS = 16

Scorer = Callable[[CausalLmLoss, UnitBatch], Tensor]
"""Figures [K, U] of a microbatch's units, each a sum over their sequences; float64, on the CPU."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Likelihood of a text under a model: total nats, and hits, over predicted tokens.

    `correct` counts the tokens that the model held for the likeliest.
    """

    nats: float
    tokens: int
    correct: int = 0

    @property
    def nats_per_token(self) -> float:
        """Cross-entropy in nats per predicted token."""
        return self.nats / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)

    @property
    def token_accuracy(self) -> float:
        """Share of tokens that the model held for the likeliest."""
        return self.correct / max(1, self.tokens)


@dataclass(frozen=True, slots=True, repr=False)
class UnitScores:
    """The same per unit, in the order of the data set. Private unless the data are public.

    Attributes:
        nats_U: total nats, float64.
        tokens_U: predicted tokens, int64.
        correct_U: tokens that the model held for the likeliest, int64.
    """

    nats_U: Tensor
    tokens_U: Tensor
    correct_U: Tensor

    def total(self) -> Likelihood:
        """All units together, every token counting the same."""
        return Likelihood(
            float(self.nats_U.sum()), int(self.tokens_U.sum()), int(self.correct_U.sum())
        )


def likelihood(
    model: nn.Module, dataset: TokenizedDataset, max_tokens: int, microbatch_tokens: int = 4096
) -> Likelihood:
    """Score every record of `dataset`; the model is put in eval mode and left in its own."""
    return unit_scores(model, dataset, max_tokens, microbatch_tokens).total()


def unit_scores(
    model: nn.Module, dataset: TokenizedDataset, max_tokens: int, microbatch_tokens: int = 4096
) -> UnitScores:
    """Score every unit of `dataset`; the model is put in eval mode and left in its own."""
    by_unit_3U = unit_sums(model, dataset, max_tokens, token_scores, microbatch_tokens)
    return UnitScores(by_unit_3U[0], by_unit_3U[1].long(), by_unit_3U[2].long())


@torch.no_grad()
def unit_sums(
    model: nn.Module,
    dataset: TokenizedDataset,
    max_tokens: int,
    score: Scorer,
    microbatch_tokens: int = 4096,
    make: Callable[[nn.Module], CausalLmLoss] = CausalLmLoss,
) -> Tensor:
    """Score of every unit by `score`, in the order of `dataset`; float64 [K, U].

    Args:
        make: the loss of a model that `score` gets.
    """
    if not dataset.n_units:
        return torch.zeros(3, 0, dtype=torch.float64)
    device = next(model.parameters()).device
    with _judging(model, make) as loss:
        limits = _limits(loss, microbatch_tokens, max_tokens)
        groups = microbatches(dataset, np.arange(dataset.n_units), limits)
        sums_KU = []
        for group in groups:
            parts_KU = sum(score(loss, part.to(device)) for part in group)
            sums_KU.append(cast(Tensor, parts_KU)[:, : group[0].n_units - group[0].n_fillers])
    # Microbatches go by size; this is the same stable sort, undone.
    sizes = [padded_size(dataset.lengths(unit), max_tokens) for unit in range(dataset.n_units)]
    order = sorted(range(dataset.n_units), key=sizes.__getitem__)
    return torch.cat(sums_KU, dim=1)[:, np.argsort(order)]


def _limits(loss: CausalLmLoss, tokens: int, max_tokens: int) -> BatchLimits:
    """Microbatches in which no unit's figures depend on the others: of one unit if need be."""
    limits = BatchLimits(tokens, _UNITS, max_tokens)
    vocabulary = int(loss.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    shortest = widths(max_tokens)[0]
    shapes = [(limits.units_of(width, 1), width) for width in (shortest, max_tokens)]
    same = all(losses_same_in_company(loss, vocabulary, shape) for shape in shapes)
    return limits if same else replace(limits, units=1)


@contextmanager
def _judging(
    model: nn.Module, make: Callable[[nn.Module], CausalLmLoss] = CausalLmLoss
) -> Iterator[CausalLmLoss]:
    """The model's loss, in eval mode; afterwards the model is in its own again."""
    training = model.training
    model.eval()
    try:
        yield make(model)
    finally:
        model.train(training)


def token_scores(loss: CausalLmLoss, batch: UnitBatch) -> Tensor:
    """Nats, tokens and hits of each unit of a microbatch; float64 [3, U] on the CPU."""
    targets = _each_token(batch)
    logits_BTV = loss.logits(targets)
    nats_B = weighted_cross_entropy(logits_BTV, targets.input_ids_BT, targets.loss_weights_BT)
    counted_BT = targets.loss_weights_BT[:, 1:] > 0
    hits_BT = (logits_BTV[:, :-1].argmax(-1) == targets.input_ids_BT[:, 1:]) & counted_BT
    rows_3B = torch.stack((nats_B.double(), counted_BT.sum(1).double(), hits_BT.sum(1).double()))
    sums_3U = torch.zeros(3, batch.n_units, dtype=torch.float64)
    return sums_3U.index_add(1, batch.unit_of_B.cpu(), rows_3B.cpu())


@contextmanager
def base_model(fitted: Any, base: Any, original: Callable[[], LoadedModel]) -> Iterator[Any]:
    """The model as it was before fitting: adapters off, or loaded again after full fine-tuning."""
    if fitted is None:
        yield base
    elif isinstance(fitted, PeftModel):
        with fitted.disable_adapter():
            yield fitted
    else:
        yield original().model


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    continuations: Sequence[str],
    context_length: int,
    microbatch_tokens: int = 4096,
) -> list[float]:
    """Natural logarithm of p(continuation | prompt) of each, summed over its own tokens.

    Whole continuations are compared, not tokens of them: one of more tokens has more factors.
    Prompt and continuation are tokenised apart, as they are when one continues the other.

    Raises SpecError if prompt and a continuation are longer than the model's context.
    """
    records = _continued(tokenizer, prompt, continuations)
    check_tokens(model, [record.input_ids.tolist() for record in records])
    width = max(len(record.input_ids) for record in records)
    if width > context_length:
        raise SpecError(
            f"prompt and continuation take {width} tokens, and the model's context is "
            f"{context_length}; shorten the prompt"
        )
    device = next(model.parameters()).device
    order = sorted(range(len(records)), key=lambda index: len(records[index].input_ids))
    log_p = [0.0] * len(records)
    with _judging(model) as loss:
        for chunk in _chunks(records, order, microbatch_tokens, context_length):
            rows = [(records[index], row) for row, index in enumerate(chunk)]
            batch = _each_token(collate(rows, len(rows), context_length))
            for index, nats in zip(chunk, loss(batch.to(device)).tolist(), strict=True):
                log_p[index] = -nats
    return log_p


def _continued(tokenizer: Any, prompt: str, continuations: Sequence[str]) -> list[TokenizedRecord]:
    before = begins(tokenizer)(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    before = before or [tokenizer.eos_token_id or 0]  # something must come before the first token
    parts = tokenizer(list(continuations), add_special_tokens=False)["input_ids"]
    return [
        TokenizedRecord(
            np.array(before + after, dtype=np.int32),
            np.arange(len(before) + len(after)) >= len(before),
        )
        for after in parts
    ]


def _chunks(
    records: Sequence[TokenizedRecord], order: Sequence[int], tokens: int, context_length: int
) -> Iterator[list[int]]:
    """Indexes in `order`, as many at a time as fit; `order` goes by length."""
    chunk: list[int] = []
    for index in order:
        width = bucket_length(len(records[index].input_ids), context_length)
        if chunk and (len(chunk) + 1) * width > tokens:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def _each_token(batch: UnitBatch) -> UnitBatch:
    weights = (batch.loss_weights_BT > 0).to(torch.float32)
    return UnitBatch(batch.input_ids_BT, weights, batch.unit_of_B, batch.n_units)
