"""Verdict from guesses, and the chance of a wrong one.

Runs are independent, so the number of right guesses about them is binomial. An engine that keeps
its promise has a trade-off function, and with a fair coin nobody is right more often than half of
one plus its advantage, its total variation distance (Dong et al. 2022, section 2). Whoever says
nothing tosses a coin, which keeps that bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats

from auditing.attackers import ATTACKERS, Guesser
from auditing.games import Played, play
from auditing.rehearsal import Rehearsal
from auditing.worlds import World
from mutants.variants import Variant
from taciturn.engine.auditing.claim import DpSgdRun, PrivacyProfile

LOOKS = (0.25, 0.5, 1.0)
"""Shares of a world's runs after which attackers may be done."""

TRIES = len(ATTACKERS) * len(LOOKS)
"""Counts in one world; what chance there is, they share."""

CHANCE = 1e-8
"""Of an honest engine being convicted in one world, over all attackers and looks together."""


@dataclass(frozen=True)
class Count:
    """Right guesses of one attacker in so many runs."""

    attacker: str
    world: World
    correct: int
    runs: int

    @property
    def p_value(self) -> float:
        """The most that the chance of so many right guesses is with an honest engine."""
        most = (1 + _advantage(self.world.run)) / 2
        return float(stats.binom.sf(self.correct - 1, self.runs, most))

    @property
    def convicts(self) -> bool:
        """Return True if that is too little to be chance, with so many tries."""
        return self.p_value < CHANCE / TRIES

    def epsilon_lower_bound(self, delta: float, confidence: float) -> float:
        """The epsilon of the noisiest run with this sampling that allows for so many right guesses.

        Infinite if that would take less than a tenth of the noise. `confidence` is that of all
        tries in this world together.
        """
        if self.correct == 0:
            return 0.0
        doubt = (1 - confidence) / TRIES
        accuracy = stats.beta.ppf(doubt, self.correct, self.runs - self.correct + 1)
        return _epsilon_at(self.world.run, float(2 * accuracy - 1), delta)


@cache
def _advantage(run: DpSgdRun) -> float:
    return PrivacyProfile.of(run).advantage


def _epsilon_at(run: DpSgdRun, advantage: float, delta: float) -> float:
    """Epsilon of the run with the noise at which the best test has this advantage."""
    low, high = run.noise_multiplier / 10, run.noise_multiplier * 100
    if _advantage(replace(run, noise_multiplier=low)) < advantage:
        return math.inf
    if _advantage(replace(run, noise_multiplier=high)) > advantage:
        return 0.0
    for _ in range(12):
        middle = math.sqrt(low * high)
        if _advantage(replace(run, noise_multiplier=middle)) < advantage:
            high = middle
        else:
            low = middle
    return replace(run, noise_multiplier=high).epsilon(delta)


def judge(engine: Variant, world: World, longer: int = 1) -> list[Count]:
    """Every attacker's count in a world, with coins of its own; done early once one convicts.

    Args:
        longer: how many times the world's runs to play.
    """
    coins = np.random.default_rng()
    rehearsal = Rehearsal.of(engine, world)
    attackers = {name: attacker(rehearsal) for name, attacker in ATTACKERS.items()}
    played = Played([], [])
    counts: list[Count] = []
    for look in LOOKS:
        runs = math.ceil(world.runs * longer * look) - len(played.included)
        more = play(engine, world, runs, coins)
        played = Played(played.released + more.released, played.included + more.included)
        counts = [_count(name, of, world, played, coins) for name, of in attackers.items()]
        if any(count.convicts for count in counts):
            break
    return counts


def _count(
    name: str, guess: Guesser, world: World, played: Played, coins: np.random.Generator
) -> Count:
    guesses = [guess(released) for released in played.released]
    tossed = [bool(coins.integers(2)) if each is None else each for each in guesses]
    correct = sum(a == b for a, b in zip(tossed, played.included, strict=True))
    return Count(name, world, correct, len(tossed))


def best(counts: Sequence[Count]) -> Count:
    """The most telling count."""
    return min(counts, key=lambda count: count.p_value)
