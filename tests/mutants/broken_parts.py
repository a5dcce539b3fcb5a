"""Losses, streams and norms as other libraries got them wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taciturn.engine.model.loss import weighted_cross_entropy
from taciturn.engine.privacy import clipping
from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.layout import BatchLayout
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import (
    PerUnitGradients,
    UnitBatch,
)
from taciturn.engine.training.step import Streams


def mean_over_the_batch(logits_BTV: Tensor, ids_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """The Hugging Face default: divided by the tokens of the whole batch."""
    even_BT = (weights_BT != 0).float()
    return weighted_cross_entropy(logits_BTV, ids_BT, even_BT) * len(ids_BT) / even_BT.sum()


def sum_over_tokens(logits_BTV: Tensor, ids_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Divided by the longest record of the batch."""
    even_BT = (weights_BT != 0).float()
    return weighted_cross_entropy(logits_BTV, ids_BT, even_BT) / ids_BT.shape[1]


def streams_of_seed(user_seed: int) -> Streams:
    """HF Trainer calls set_seed(42), and the noise follows."""
    key = np.random.default_rng(user_seed).bytes(32)
    return Streams(SecureStream(key), SecureStream(key[::-1]))


def streams_of_torch(user_seed: int) -> Streams:
    """Keys from the global generator that `set_seed` seeds."""
    return Streams(*(SecureStream(bytes(torch.randint(256, (32,)).tolist())) for _ in range(2)))


def streams_of_one_key(user_seed: int) -> Streams:
    """A fresh key, for both."""
    stream = SecureStream.fresh()
    return Streams(stream, stream)


def tied_once(loss: nn.Module, batch: UnitBatch) -> PerUnitGradients:
    """A hook per module: of a tied weight's two gradients, the second overwrites the first."""
    gradients = per_example_gradients(loss, batch)
    tied = next(name for name in gradients.values if "embed" in name)
    table = loss.get_parameter(tied)
    head_only = [
        torch.autograd.grad(_head_loss(loss, batch, unit), table)[0]
        for unit in range(batch.n_units)
    ]
    return PerUnitGradients({**gradients.values, tied: torch.stack(head_only)}, gradients.losses_U)


def _head_loss(loss: Any, batch: UnitBatch, unit: int) -> Tensor:
    rows = batch.unit_of_B == unit
    embedded = loss.model.get_input_embeddings()(batch.input_ids_BT[rows]).detach()
    logits = loss.model(inputs_embeds=embedded, use_cache=False).logits
    losses = weighted_cross_entropy(logits, batch.input_ids_BT[rows], batch.loss_weights_BT[rows])
    return losses.sum()


class UsesApart(FactoredGradients):
    """Adds the squared norms of a weight's uses: the cross terms are missing."""

    def squared_norms(self) -> Tensor:
        each = (FactoredGradients((term,), self.layout, self.shape) for term in self.terms)
        return torch.stack([one.squared_norms() for one in each]).sum(0)


class LastUseOnly(FactoredGradients):
    """A hook for each use writes the norm to one place: the last one stays."""

    def squared_norms(self) -> Tensor:
        last = FactoredGradients(self.terms[-1:], self.layout, self.shape)
        return last.squared_norms()


class SequencesApart(FactoredGradients):
    """Adds the squared norms of a unit's sequences, as if each were a unit."""

    def squared_norms(self) -> Tensor:
        sequences = len(self.layout.unit_of_B)
        layout = BatchLayout.of(self.layout.tokens, sequences, torch.arange(sequences))
        squares_B = FactoredGradients(self.terms, layout, self.shape).squared_norms()
        zeros_U = squares_B.new_zeros(self.layout.n_units)
        return zeros_U.index_add_(0, self.layout.unit_of_B, squares_B)


def factors_apart(loss: nn.Module, batch: UnitBatch) -> PerUnitGradients:
    return _as(UsesApart, per_example_gradients(loss, batch, Form.FACTORS))


def last_use_only(loss: nn.Module, batch: UnitBatch) -> PerUnitGradients:
    return _as(LastUseOnly, per_example_gradients(loss, batch, Form.FACTORS))


def sequences_apart(loss: nn.Module, batch: UnitBatch) -> PerUnitGradients:
    return _as(SequencesApart, per_example_gradients(loss, batch, Form.FACTORS))


def _as(kind: type[FactoredGradients], gradients: PerUnitGradients) -> PerUnitGradients:
    values = {
        name: kind(value.terms, value.layout, value.shape)
        if isinstance(value, FactoredGradients)
        else value
        for name, value in gradients.values.items()
    }
    return PerUnitGradients(values, gradients.losses_U)


def first_matrix_only(gradients: PerUnitGradients) -> Tensor:
    """Counts A of LoRA's B A in the norm, and forgets B."""
    return clipping.unit_norms(
        PerUnitGradients(
            {name: value for name, value in gradients.values.items() if "lora_B" not in name},
            gradients.losses_U,
        )
    )


def norms_in_bf16(gradients: PerUnitGradients) -> Tensor:
    squares_U = torch.zeros(len(gradients.losses_U), dtype=torch.bfloat16)
    for value in gradients.dense().values():
        squares_U += value.bfloat16().flatten(1).square().sum(1)
    return squares_U.sqrt().double()


def loose_norms(gradients: PerUnitGradients) -> Tensor:
    """'Ghost' norms by the triangle inequality: a bound, not the norm."""
    norms = (value.flatten(1).double().norm(dim=1) for value in gradients.dense().values())
    return torch.stack(list(norms)).sum(0)
