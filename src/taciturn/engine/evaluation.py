"""Perplexity on text that the user calls public: free of charge, exact, not noised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from taciturn.engine.data.batch import BatchLimits, microbatches
from taciturn.engine.data.tokenize import TokenizedDataset
from taciturn.engine.model.load import load_base
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.types import UnitBatch
from taciturn.spec import PerformanceSpec


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How well a model predicts a text: total nats over predicted tokens."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """Cross-entropy in nats per predicted token."""
        return self.nats / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)


@torch.no_grad()
def likelihood(
    model: nn.Module, dataset: TokenizedDataset, max_tokens: int, microbatch_tokens: int = 4096
) -> Likelihood:
    """Score every record of `dataset`; the model is put in eval mode and left in its own."""
    loss = CausalLmLoss(model)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    limits = BatchLimits(microbatch_tokens, units=1024, max_tokens=max_tokens)
    for group in microbatches(dataset, np.arange(dataset.n_units), limits):
        for part in group:
            each = _each_token(part).to(device)
            nats += float(loss(each).double().sum())
            tokens += int(each.loss_weights_BT.sum())
    model.train(training)
    return Likelihood(nats, tokens)


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
