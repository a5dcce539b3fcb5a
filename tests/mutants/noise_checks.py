"""Checks of the noise: scale on both sides, independence, freshness, empty draws, ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from mutants.harness import (
    CHANCE,
    CLIP,
    SIGMA,
    UNITS,
    key,
    released,
    run,
    streams,
)
from mutants.variants import Dataset, Variant
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.training.step import Streams


def accounted_noise(mechanism: DpSgdMechanism) -> float:
    """The noise multiplier that the accountant is told."""
    event: Any = mechanism.dp_event
    step = event.event
    return float(getattr(step, "event", step).noise_multiplier)


def two_sided(values: Tensor, std: float) -> None:
    """Values of mean zero have this standard deviation, and are normal: neither less nor more."""
    array = values.numpy() / std
    statistic = float((array**2).sum())
    low, high = stats.chi2.ppf([CHANCE / 2, 1 - CHANCE / 2], len(array))
    measured = math.sqrt(statistic / len(array))
    assert low <= statistic <= high, f"noise is {measured:.4f} of what it must be"
    assert stats.kstest(array, "norm").pvalue > CHANCE, "noise is not normal"


def noise_scale(variant: Variant) -> None:
    """Over many steps with the same units, the release varies as is accounted for, both sides."""
    dataset = Dataset(UNITS)
    steps = 60
    state = run(variant, dataset, streams(3), drawn=[0, 1, 2, 3, 4, 5], steps=steps)
    rows = torch.stack(released(state).chunk(steps))
    mechanism = variant.mechanism(8, 4, steps, SIGMA, CLIP, ("w",))
    std = accounted_noise(mechanism) * CLIP / 4
    two_sided(_contrasts(rows).flatten(), std)


def _contrasts(rows: Tensor) -> Tensor:
    """n rows of one mean to n - 1 independent rows of mean zero and the same variance (Helmert)."""
    n = len(rows)
    matrix = torch.zeros(n - 1, n, dtype=rows.dtype)
    for row in range(1, n):
        matrix[row - 1, :row] = 1 / math.sqrt(row * (row + 1))
        matrix[row - 1, row] = -row / math.sqrt(row * (row + 1))
    return matrix @ rows


def noise_is_independent(variant: Variant) -> None:
    """No coordinate's noise tells another's, within a step or from one step to the next."""
    steps = 40
    state = run(variant, Dataset(UNITS), streams(5), drawn=[], steps=steps)
    flat = released(state)
    assert len(flat.unique()) > 0.99 * len(flat), "values are repeated"
    rows = torch.stack(flat.chunk(steps))
    correlations = torch.corrcoef(rows.T)
    correlations.fill_diagonal_(0)
    # Of rows of 40 independent steps; the bound is for the largest of all pairs.
    bound = math.sqrt(2 * math.log(len(correlations) ** 2 / CHANCE) / steps)
    assert float(correlations.abs().max()) <= min(0.999, bound), "coordinates are correlated"


def fresh_noise(variant: Variant) -> None:
    """The same user seed gives other noise; no part of a stream comes twice."""
    dataset = Dataset(UNITS)
    runs = []
    for _ in range(2):
        torch.manual_seed(42)
        np.random.seed(42)
        runs.append(released(run(variant, dataset, variant.streams(42), drawn=[], steps=3)))
    both = torch.cat(runs)
    assert len(both.unique()) > 0.99 * len(both), "noise came twice"


def streams_apart(variant: Variant) -> None:
    """Noise is from the stream of noise: whoever saw a draw would know it otherwise."""
    found = []
    for number in (10, 11):
        own = Streams(SecureStream(key(number)), SecureStream(key(99)))
        found.append(released(run(variant, Dataset(UNITS), own, drawn=[])))
    assert torch.equal(*found), "the noise depends on the stream of the draw"
    fresh = variant.streams(42)
    assert fresh.sampling.identity != fresh.noise.identity, "one key for both streams"


def one_release(variant: Variant) -> None:
    """One logical step releases one gradient, with noise, however many microbatches it takes."""
    state = run(variant, Dataset(UNITS), streams(6), drawn=list(range(8)))
    assert len(state.released) == 1, f"{len(state.released)} releases in one step"
    assert state.released[0].noise_std == SIGMA * CLIP / 4


def empty_draw(variant: Variant) -> None:
    """Nobody drawn: a release of pure noise of the full scale, and nobody is read."""
    dataset = Dataset(UNITS)
    steps = 40
    state = run(variant, dataset, streams(7), drawn=[], steps=steps)
    assert not dataset.read, "an empty draw read a unit"
    assert len(state.released) == steps, "an empty draw is a step like any other"
    two_sided(released(state), SIGMA * CLIP / 4)
