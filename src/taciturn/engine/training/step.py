"""One DP-SGD step, in the order of the paper (Abadi et al. 2016, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from taciturn.engine.data.batch import BatchLimits, microbatches
from taciturn.engine.data.tokenize import TokenizedDataset
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import sum_parts
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import ClipCounts
from taciturn.engine.training.state import TrainingState


@dataclass(frozen=True, slots=True)
class Streams:
    """The two secret streams of one process: which units, and the noise on their sum."""

    sampling: SecureStream
    noise: SecureStream

    @classmethod
    def fresh(cls) -> Streams:
        """New keys from the operating system; a resumed run gets new ones too."""
        return cls(SecureStream.fresh(), SecureStream.fresh())


def private_step(
    loss: nn.Module,
    dataset: TokenizedDataset,
    mechanism: DpSgdMechanism,
    state: TrainingState,
    streams: Streams,
    limits: BatchLimits,
) -> ClipCounts:
    """Sample units, clip each one's gradient, add noise to the sum, update. Once per step.

    Returns:
        Private counts for the owner's eyes; nothing of the update depends on them.
    """
    units = mechanism.sample(streams.sampling)
    groups = microbatches(dataset, units, limits)
    gradients = (sum_parts(loss, [part.to(state.device) for part in group]) for group in groups)
    total = mechanism.clip_and_sum(state.parameters, gradients)
    private = mechanism.add_noise(total, streams.noise)
    state.apply(private)
    return total.counts


def ordinary_step(
    loss: nn.Module,
    dataset: TokenizedDataset,
    units: NDArray[np.int64],
    state: TrainingState,
    limits: BatchLimits,
) -> ClipCounts:
    """One step without any privacy, for `target_epsilon="unlimited"`: the plain mean gradient.

    Args:
        units: the step's share of a shuffled epoch.
    """
    parameters = state.parameters
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    loss_sum, n_records = 0.0, 0
    for group in microbatches(dataset, units, limits):
        for part in group:
            losses_B = loss(part.to(state.device))
            gradients = torch.autograd.grad(losses_B.sum(), list(parameters.values()))
            torch._foreach_add_(list(sums.values()), list(gradients))
            loss_sum += float(losses_B.detach().sum())
            n_records += len(losses_B)
    state.apply_without_privacy({name: value / n_records for name, value in sums.items()})
    return ClipCounts(n_units=n_records, loss_sum=loss_sum)
