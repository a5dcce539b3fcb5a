"""How well a model predicts a text: nats and hits per token, exact and not noised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from taciturn.engine.data.batch import BatchLimits, microbatches
from taciturn.engine.data.tokenize import TokenizedDataset
from taciturn.engine.model.load import load_base
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy
from taciturn.engine.privacy.types import UnitBatch
from taciturn.spec import PerformanceSpec


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How well a model predicts a text: total nats, and hits, over predicted tokens.

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


@torch.no_grad()
def unit_scores(
    model: nn.Module, dataset: TokenizedDataset, max_tokens: int, microbatch_tokens: int = 4096
) -> UnitScores:
    """Score every unit of `dataset`; the model is put in eval mode and left in its own."""
    loss = CausalLmLoss(model)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    limits = BatchLimits(microbatch_tokens, units=1024, max_tokens=max_tokens)
    groups = microbatches(dataset, np.arange(dataset.n_units), limits)
    scores_3U = [sum(_scored(loss, part.to(device)) for part in group) for group in groups]
    model.train(training)
    # Microbatches go by length; this is the same stable sort, undone.
    order = sorted(range(dataset.n_units), key=lambda unit: max(dataset.lengths(unit)))
    by_unit_3U = torch.cat(cast(list[Tensor], scores_3U), dim=1)[:, np.argsort(order)]
    return UnitScores(by_unit_3U[0], by_unit_3U[1].long(), by_unit_3U[2].long())


def _scored(loss: CausalLmLoss, batch: UnitBatch) -> Tensor:
    """Nats, tokens and hits of each unit of a microbatch; float64 [3, U] on the CPU."""
    each = _each_token(batch)
    logits_BTV = loss.logits(each)
    nats_B = weighted_cross_entropy(logits_BTV, each.input_ids_BT, each.loss_weights_BT)
    counted_BT = each.loss_weights_BT[:, 1:] > 0
    hits_BT = (logits_BTV[:, :-1].argmax(-1) == each.input_ids_BT[:, 1:]) & counted_BT
    rows_3B = torch.stack((nats_B.double(), counted_BT.sum(1).double(), hits_BT.sum(1).double()))
    sums_3U = torch.zeros(3, batch.n_units, dtype=torch.float64)
    return sums_3U.index_add(1, batch.unit_of_B.cpu(), rows_3B.cpu())


@contextmanager
def base_model(name: str, fitted: Any, base: Any, spec: PerformanceSpec) -> Iterator[Any]:
    """The model as it was before fitting: adapters off, or loaded again after full fine-tuning."""
    if fitted is None:
        yield base
    elif isinstance(fitted, PeftModel):
        with fitted.disable_adapter():
            yield fitted
    else:
        yield load_base(name, spec).model


@torch.no_grad()
def log_probability(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """Natural logarithm of p(continuation | prompt), summed over the continuation's tokens.

    Prompt and continuation are tokenised separately, as they are when one continues the other.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + after], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1].float()
    scores = torch.log_softmax(logits, dim=-1)
    return float(scores.gather(1, ids[0, len(before) :, None]).double().sum())


def _each_token(batch: UnitBatch) -> UnitBatch:
    weights = (batch.loss_weights_BT > 0).to(torch.float32)
    return UnitBatch(batch.input_ids_BT, weights, batch.unit_of_B, batch.n_units)
