"""Checks of the sampling: Poisson, by inclusion, sizes and pairs, and one draw per step."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mutants.harness import (
    CHANCE,
    CLIP,
    SIGMA,
    key,
    run,
    streams,
)
from mutants.variants import Dataset, Variant
from taciturn.engine.privacy.rng import SecureStream

N_UNITS, BATCH_SIZE, DRAWS = 24, 8, 4000


def _draws(variant: Variant) -> NDArray[np.bool_]:
    """Inclusion of every unit in many draws of the mechanism, [draws, units]."""
    mechanism = variant.mechanism(N_UNITS, BATCH_SIZE, DRAWS, SIGMA, CLIP, ("w",))
    stream, included = SecureStream(key(8)), np.zeros((DRAWS, N_UNITS), dtype=np.bool_)
    for row in included:
        row[mechanism.sample(stream, N_UNITS)] = True
    return included


def poisson_inclusion(variant: Variant) -> None:
    """Each unit joins a draw with the probability of the account: chi-square over units."""
    q = BATCH_SIZE / N_UNITS
    counts = _draws(variant).sum(0)
    statistic = float(((counts - DRAWS * q) ** 2).sum() / (DRAWS * q * (1 - q)))
    p = stats.chi2.sf(statistic, N_UNITS)
    assert p > CHANCE, f"inclusion is off: counts from {counts.min()} to {counts.max()}"


def poisson_sizes(variant: Variant) -> None:
    """The size of a draw is binomial: chi-square over sizes."""
    sizes = np.bincount(_draws(variant).sum(1), minlength=N_UNITS + 1)
    law = stats.binom(N_UNITS, BATCH_SIZE / N_UNITS)
    edges = [0, 4, 5, 6, 7, 8, 9, 10, 11, 12, N_UNITS + 1]
    seen = [sizes[a:b].sum() for a, b in pairwise(edges)]
    expected = [DRAWS * (law.cdf(b - 1) - law.cdf(a - 1)) for a, b in pairwise(edges)]
    p = stats.chisquare(seen, expected).pvalue
    assert p > CHANCE, f"sizes are not binomial: {seen} where {np.round(expected)} are expected"


def poisson_pairs(variant: Variant) -> None:
    """Whether one unit joins tells nothing about another, nor about the next draw."""
    included = _draws(variant).astype(np.float64)
    q = BATCH_SIZE / N_UNITS
    centred = (included - q) / math.sqrt(q * (1 - q))
    pairs = centred.T @ centred / math.sqrt(DRAWS)
    later = centred[1:].T @ centred[:-1] / math.sqrt(DRAWS - 1)
    off = np.concatenate([pairs[np.triu_indices(N_UNITS, 1)], later.flatten()])
    bound = stats.norm.isf(CHANCE / 2 / len(off))
    assert np.abs(off).max() <= bound, f"a pair is {np.abs(off).max():.1f} deviations from chance"


def declared_units(variant: Variant) -> None:
    """With more or fewer units than were declared, each joins as often as is accounted for."""
    mechanism = variant.mechanism(N_UNITS, BATCH_SIZE, DRAWS, SIGMA, CLIP, ("w",))
    q = BATCH_SIZE / N_UNITS
    for present in (0, 1, N_UNITS // 2, 2 * N_UNITS):
        stream, counts = SecureStream(key(10)), np.zeros(max(1, present))
        for _ in range(DRAWS // 4):
            drawn = mechanism.sample(stream, present)
            assert not len(drawn) or drawn[-1] < present, "a unit was drawn that is not there"
            counts[drawn] += 1
        mean, deviation = DRAWS / 4 * q, math.sqrt(DRAWS / 4 * q * (1 - q))
        bound = stats.norm.isf(CHANCE / 2 / 40) * deviation
        off = np.abs(counts - mean).max() if present else 0.0
        assert off <= bound, f"{present} units there: inclusion is {off / deviation:.1f} off"


def each_unit_once(variant: Variant) -> None:
    """A logical step reads each drawn unit once, and draws once: the sizes are as accounted."""
    dataset = Dataset([[3]] * 12)
    running, sizes = streams(9), []
    for _ in range(150):
        dataset.read.clear()
        run(variant, dataset, running)
        assert len(set(dataset.read)) == len(dataset.read), "a unit came twice in one step"
        sizes.append(len(dataset.read))
    mean = sum(sizes) / len(sizes)
    deviation = math.sqrt(12 * (1 / 3) * (2 / 3) / len(sizes))
    assert abs(mean - 4) <= stats.norm.isf(CHANCE / 2) * deviation, f"steps read {mean} units"
