"""Losses, streams, norms and reductions over workers as other libraries got them wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taciturn.engine.model.loss import weighted_cross_entropy
from taciturn.engine.privacy import clipping, noise
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import (
    BoundedSum,
    PerUnitGradients,
    PrivateGradient,
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
    for value in gradients.values.values():
        squares_U += value.bfloat16().flatten(1).square().sum(1)
    return squares_U.sqrt().double()


def loose_norms(gradients: PerUnitGradients) -> Tensor:
    """'Ghost' norms by the triangle inequality: a bound, not the norm."""
    norms = (value.flatten(1).double().norm(dim=1) for value in gradients.values.values())
    return torch.stack(list(norms)).sum(0)


def noise_on_every_rank(
    mechanism: DpSgdMechanism, sums: list[BoundedSum], streams: list[SecureStream]
) -> PrivateGradient:
    """Each rank adds noise for itself alone, and the ranks' gradients are averaged."""
    parts = [mechanism.add_noise(each, stream) for each, stream in zip(sums, streams, strict=True)]
    values = {
        name: torch.stack([part.values[name] for part in parts]).mean(0) for name in parts[0].values
    }
    return PrivateGradient(values, parts[0].noise_std)


def same_noise_on_every_rank(
    mechanism: DpSgdMechanism, sums: list[BoundedSum], streams: list[SecureStream]
) -> PrivateGradient:
    """Each rank adds a share of the noise, but from one seed: the shares are the same."""
    ranks = len(sums)
    values: dict[str, Tensor] = {}
    for each in sums:
        share = noise.add_noise(
            each,
            mechanism.noise_multiplier / ranks**0.5,
            mechanism.expected_batch_size,
            SecureStream(bytes(32)),
        )
        values = {k: v + values.get(k, torch.zeros(())) for k, v in share.values.items()}
    std = mechanism.noise_multiplier * mechanism.l2_clip_norm / mechanism.expected_batch_size
    return PrivateGradient(values, std)
