"""Steps as other libraries got them wrong: what is drawn, split, divided and skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mutants.variants import State, Step
from taciturn.engine.privacy import noise
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import sum_parts
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import (
    BoundedSum,
    PrivateGradient,
    UnitBatch,
)
from taciturn.engine.training.batch import BatchLimits, microbatches
from taciturn.engine.training.step import Streams


@dataclass(frozen=True)
class Run:
    """The arguments of a step, and what mutants do with them."""

    loss: nn.Module
    dataset: Any
    mechanism: DpSgdMechanism
    state: State
    streams: Streams
    limits: BatchLimits

    def draw(self) -> NDArray[np.int64]:
        """The units of one draw."""
        return self.mechanism.sample(self.streams.sampling, self.dataset.n_units)

    def groups(self, units: NDArray[np.int64]) -> list[tuple[UnitBatch, ...]]:
        """Their microbatches."""
        return list(microbatches(self.dataset, units, self.limits))

    def total(self, groups: Iterable[tuple[UnitBatch, ...]]) -> BoundedSum:
        """The clipped sum over microbatches."""
        gradients = (sum_parts(self.loss, group) for group in groups)
        return self.mechanism.clip_and_sum(self.state.parameters, gradients)

    def release(self, total: BoundedSum, stream: SecureStream | None = None) -> None:
        """Noise, and the update."""
        self.state.apply(self.mechanism.add_noise(total, stream or self.streams.noise))


def broken_step(step: Callable[[Run], None]) -> Step:
    """A step with the signature of `private_step`."""
    return lambda *arguments: step(Run(*arguments))


@broken_step
def step_with_two_draws(run: Run) -> None:
    """Gradient accumulation that asks the sampler again for each microbatch."""
    run.release(run.total(run.groups(run.draw()) + run.groups(run.draw())))


@broken_step
def step_with_one_stream(run: Run) -> None:
    """Draws and noise from one stream."""
    run.release(run.total(run.groups(run.draw())), run.streams.sampling)


@broken_step
def step_with_noise_on_the_first_microbatch(run: Run) -> None:
    """Each microbatch is applied; only the first has noise."""
    first, *others = run.groups(run.draw())
    run.release(run.total([first]))
    for group in others:
        sums = run.total([group]).values
        values = {k: (v / run.mechanism.expected_batch_size).float() for k, v in sums.items()}
        run.state.apply(PrivateGradient(values, 0.0))


@broken_step
def step_divided_by_what_was_drawn(run: Run) -> None:
    """Divides by the realised batch size, which is private."""
    units = run.draw()
    total, sigma = run.total(run.groups(units)), run.mechanism.noise_multiplier
    run.state.apply(noise.add_noise(total, sigma, max(1, len(units)), run.streams.noise))


@broken_step
def step_that_skips_empty_draws(run: Run) -> None:
    """No unit, no step."""
    units = run.draw()
    if len(units):
        run.release(run.total(run.groups(units)))


@broken_step
def step_that_fills_empty_draws(run: Run) -> None:
    """No unit, so the first of the data is taken."""
    units = run.draw()
    run.release(run.total(run.groups(units if len(units) else np.zeros(1, dtype=np.int64))))


@broken_step
def step_by_record(run: Run) -> None:
    """Clips each record by itself, though a unit has several."""
    parts = [part for group in run.groups(run.draw()) for part in group]
    run.release(run.total((_one_unit_each(part),) for part in parts))


def _one_unit_each(part: UnitBatch) -> UnitBatch:
    sequences = len(part.unit_of_B)
    return replace(part, unit_of_B=torch.arange(sequences), n_units=sequences)


@broken_step
def step_that_clips_parts(run: Run) -> None:
    """A unit too large for one batch is clipped once for each part of it."""
    run.release(run.total((part,) for group in run.groups(run.draw()) for part in group))


@broken_step
def step_that_packs_two_units(run: Run) -> None:
    """Fills what is left of a row with the next unit's records, and clips by row."""
    units = run.draw()
    pairs = Pairs(run.dataset, [units[start : start + 2] for start in range(len(units))])
    limits = replace(run.limits, packed=True)
    run.release(run.total(microbatches(cast(Any, pairs), np.arange(len(pairs.of)), limits)))


@dataclass(frozen=True)
class Pairs:
    """Takes two units for one; most units are in two pairs."""

    dataset: Any
    of: list[NDArray[np.int64]]

    def records(self, pair: int) -> list[Any]:
        """Those of both."""
        return [record for unit in self.of[pair] for record in self.dataset.records(int(unit))]


@broken_step
def step_with_the_last_stream_again(run: Run) -> None:
    """Restarts the noise at every step, as a generator re-seeded after a resume does."""
    run.release(run.total(run.groups(run.draw())), SecureStream(bytes(32)))
