"""Runs steps of a variant with fixed keys and collects what they release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mutants.variants import MAX_TOKENS, Dataset, LossOf, State, TinyLm, Variant, names_of
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.training.batch import BatchLimits
from taciturn.engine.training.step import Streams

CLIP = 0.25
SIGMA = 1.5
# Small microbatches, so that a step has several, and large units several parts.
LIMITS = BatchLimits(tokens=64, units=3, max_tokens=MAX_TOKENS)
PACKED = replace(LIMITS, packed=True)
ONE_BATCH = BatchLimits(tokens=1 << 14, units=1000, max_tokens=MAX_TOKENS)
# Noise too small to matter: what is left is the sum.
SILENT = 1e-7
# Two-sided, over all random checks together: chance fails one in a million.
CHANCE = 1e-7

# Records per unit and their lengths: short ones, one with several records, one long.
UNITS = [[5], [9], [3, 4], [7], [16], [12, 2, 8, 30], [4], [6]]
LONG = [60, 50]


def key(number: int) -> bytes:
    """A fixed key for a fixed test."""
    return number.to_bytes(32, "big")


def fixed(variant: Variant, drawn: list[int] | None) -> type[DpSgdMechanism]:
    """The variant's mechanism, made to draw these units."""
    if drawn is None:
        return variant.mechanism

    class Fixed(variant.mechanism):  # type: ignore[name-defined, misc]
        def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
            return np.array(drawn, dtype=np.int64)

    return Fixed


def run(
    variant: Variant,
    dataset: Dataset,
    streams: Streams,
    *,
    drawn: list[int] | None = None,
    sigma: float = SIGMA,
    batch_size: int = 4,
    steps: int = 1,
    clip: float = CLIP,
    limits: BatchLimits = LIMITS,
    model: Callable[[LossOf], nn.Module] = TinyLm,
    **more: Any,
) -> State:
    """Run steps of the variant; what it released is in the state, what it read in the dataset.

    Args:
        model: what is fitted, given the variant's loss.
        more: of the step, such as `form`.
    """
    made = model(variant.loss_of)
    mechanism = fixed(variant, drawn)(
        n_units=max(batch_size, dataset.n_units),
        expected_batch_size=batch_size,
        steps=steps,
        noise_multiplier=sigma,
        l2_clip_norm=clip,
        parameter_names=names_of(made),
    )
    state = State({name: made.get_parameter(name) for name in names_of(made)})
    for _ in range(steps):
        variant.step(made, dataset, mechanism, state, streams, limits, **more)
    return state


def streams(number: int) -> Streams:
    """Fixed streams."""
    return Streams(SecureStream(key(2 * number)), SecureStream(key(2 * number + 1)))


def released(state: State) -> Tensor:
    """Everything a run released, one step after another, as one float64 vector."""
    parts = [value.double().flatten() for each in state.released for value in each.values.values()]
    return torch.cat(parts)
