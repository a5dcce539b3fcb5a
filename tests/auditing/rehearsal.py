"""Attacker's rehearsal, with copies of the engine on their own machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditing.games import Released, release
from auditing.worlds import World
from mutants.variants import Variant

Vector = NDArray[np.float64]

_REHEARSALS = 80


@dataclass(frozen=True)
class Sums:
    """The sums that a step can come to: [A, P], and the logarithm of how often, [A]."""

    values: Vector
    log_shares: Vector

    @classmethod
    def of(cls, seen: list[Vector], grain: float) -> Sums:
        """Those that were seen, told apart by more than `grain`."""
        values, counts = np.unique(np.round(np.array(seen) / grain), axis=0, return_counts=True)
        return cls(values * grain, np.log(counts / len(seen)))


@dataclass(frozen=True)
class Rehearsal:
    """An engine in a world without its noise.

    Attributes:
        engine, world: what was rehearsed, and can be run again.
        steps: of each step, its sums without the canary and with it; empty if runs have not all as
            many releases.
        base: the mean release without the canary, [P].
        direction: from there to the mean with it, [P].
        silent: where nothing but noise is ever released, [P].
    """

    engine: Variant
    world: World
    steps: tuple[tuple[Sums, Sums], ...]
    base: Vector
    direction: Vector
    silent: NDArray[np.bool_]

    @classmethod
    def of(cls, engine: Variant, world: World) -> Rehearsal:
        """Run copies; one of each neighbour is enough where all units join every step."""
        times = 1 if world.run.sampling_probability == 1 else _REHEARSALS
        out, in_ = (
            [release(engine, world, member, silent=True) for _ in range(times)]
            for member in (False, True)
        )
        grain = 1e-4 * world.unit_of_release
        everything = np.array([seen for run in (*out, *in_) for seen in run])
        silent = np.nan_to_num(np.abs(everything), nan=np.inf).max(0) < grain
        base = _mean(out, len(silent))
        return cls(
            engine, world, _steps(out, in_, grain), base, _mean(in_, len(silent)) - base, silent
        )

    @property
    def std(self) -> float:
        """Standard deviation of the accounted noise in a release."""
        return self.world.noise_multiplier * self.world.unit_of_release


def _mean(runs: list[Released], size: int) -> Vector:
    seen = [step for run in runs for step in run]
    return np.nan_to_num(np.mean(seen, axis=0)) if seen else np.zeros(size)


def _steps(out: list[Released], in_: list[Released], grain: float) -> tuple[tuple[Sums, Sums], ...]:
    counts = {len(run) for run in (*out, *in_)}
    if len(counts) > 1:
        return ()
    return tuple(
        (Sums.of([run[step] for run in out], grain), Sums.of([run[step] for run in in_], grain))
        for step in range(counts.pop())
    )
