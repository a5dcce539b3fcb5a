"""Attackers who know all data and settings but the coins, and of the engine what anybody can try.

Each gets a rehearsal, and with it the engine as a thing to run; then it says of every run that it
is shown whether the canary was in, or nothing. None reads the source; all attack every engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from auditing.games import Released, release
from auditing.rehearsal import Rehearsal, Sums, Vector

Guesser = Callable[[Released], bool | None]

_SHADOWS = 24


def likelihood(rehearsal: Rehearsal) -> Guesser:
    """Knows each sum that there can be, and guesses what is likelier: the optimal test."""

    def log_density(seen: Vector, sums: Sums) -> float:
        distances = ((sums.values - seen) ** 2).sum(1)
        return float(special.logsumexp(sums.log_shares - distances / (2 * rehearsal.std**2)))

    def guess(released: Released) -> bool | None:
        if len(released) != len(rehearsal.steps):
            return None
        evidence = sum(
            log_density(seen, in_) - log_density(seen, out)
            for seen, (out, in_) in zip(released, rehearsal.steps, strict=True)
        )
        return None if math.isnan(evidence) or evidence == 0 else evidence > 0

    return guess


def signs(rehearsal: Rehearsal) -> Guesser:
    """Looks at what should tell nothing: the number of releases, how loud silence is, NaN."""

    def features(released: Released) -> Vector:
        broken = sum(float(~np.isfinite(seen).all()) for seen in released)
        loudness = [_log_loudness(seen[rehearsal.silent]) for seen in released]
        return np.array([len(released), broken, min(loudness, default=0), max(loudness, default=0)])

    out, in_ = (
        np.array([features(release(rehearsal.engine, rehearsal.world, m)) for _ in range(_SHADOWS)])
        for m in (False, True)
    )
    gaps = np.abs(in_.mean(0) - out.mean(0)) / (np.hypot(in_.std(0), out.std(0)) + 1e-9)
    best = int(np.argmax(gaps))
    middle, higher = (in_.mean(0) + out.mean(0))[best] / 2, in_.mean(0)[best] > out.mean(0)[best]

    def guess(released: Released) -> bool | None:
        if gaps[best] < 5:
            return None
        return bool((features(released)[best] > middle) == higher)

    return guess


def _log_loudness(noise: Vector) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.log(np.std(noise) + 1e-12))) if len(noise) else 0.0


def same_noise(rehearsal: Rehearsal) -> Guesser:
    """Subtracts noise that comes again: from step to step, or in a run of its own."""
    own = release(rehearsal.engine, rehearsal.world, member=False)
    direction = rehearsal.direction / (np.linalg.norm(rehearsal.direction) + 1e-12)

    def guess(released: Released) -> bool | None:
        votes = []
        for index, seen in enumerate(released):
            for other in (*own, *released[:index]):
                rest = seen - other
                if rehearsal.silent.any() and np.std(rest[rehearsal.silent]) < 1e-3 * rehearsal.std:
                    added = abs(float(rest @ direction))
                    votes.append(added > rehearsal.world.unit_of_release / 2)
        return any(votes) if votes else None

    return guess


def echo(rehearsal: Rehearsal) -> Guesser:
    """Looks for the canary's noise elsewhere in the same gradient, where nothing else is."""
    place = int(np.argmax(np.abs(rehearsal.direction)))
    base, added = rehearsal.base[place], rehearsal.direction[place]

    def heard(released: Released, without: float) -> bool:
        """Return True if the canary's place, less this, is what some silent place shows."""
        return any(
            (np.abs(seen[rehearsal.silent] - (seen[place] - without)) < 1e-4 * rehearsal.std).any()
            for seen in released
        )

    def guess(released: Released) -> bool | None:
        out, in_ = heard(released, base), heard(released, base + added)
        return None if out == in_ else in_

    return guess


ATTACKERS: dict[str, Callable[[Rehearsal], Guesser]] = {
    attacker.__name__: attacker for attacker in (likelihood, signs, same_noise, echo)
}
