"""The loop around the step: resume, checkpoints, progress, Ctrl-C."""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from taciturn.accounting.compose import epsilon_curve
from taciturn.engine.data.batch import BatchLimits
from taciturn.engine.data.tokenize import TokenizedDataset
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.types import ClipCounts
from taciturn.engine.training.checkpoint import CheckpointStore, Journal
from taciturn.engine.training.interrupt import deferred_interrupt
from taciturn.engine.training.plan import TrainingPlan
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, ordinary_step, private_step

_CURVE_POINTS = 24
# Per-unit gradients of one microbatch: units x trainable parameters x 4 bytes.
_GRADIENT_BYTES = 2**29


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; a checkpoint was left at `step`."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step} of {steps}; run again with --resume to go on")
        self.step = step


@dataclass(frozen=True, slots=True)
class Progress:
    """Public news of a run; nothing in it depends on the rows.

    `epsilon` is what has been spent so far (an upper bound between points of the curve), None
    without privacy.
    """

    step: int
    steps: int
    epsilon: float | None
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class PrivateMetrics:
    """Private news of a step, for the data owner's eyes only."""

    step: int
    mean_loss: float
    mean_norm: float
    clipped_share: float


@dataclass(frozen=True, slots=True)
class EpsilonCurve:
    """Epsilon after 0 .. steps steps."""

    steps: tuple[int, ...]
    epsilons: tuple[float, ...]

    @classmethod
    def of(cls, plan: TrainingPlan) -> EpsilonCurve:
        """The curve of a plan; empty without privacy."""
        if plan.privacy is None:
            return cls((), ())
        points = np.unique(np.linspace(1, plan.steps, min(_CURVE_POINTS, plan.steps)).astype(int))
        steps = tuple(int(point) for point in points)
        values = epsilon_curve(
            sampling_probability=plan.sampling_probability,
            noise_multiplier=plan.privacy.noise_multiplier,
            steps=steps,
            delta=plan.privacy.delta,
        )
        return cls((0, *steps), (0.0, *values))

    def at(self, step: int) -> float | None:
        """Epsilon spent after `step` steps, rounded up to the next point of the curve."""
        return self.epsilons[bisect_left(self.steps, step)] if self.steps else None


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: what is trained, on what, and where its private state is kept."""

    loss: nn.Module
    dataset: TokenizedDataset
    plan: TrainingPlan
    private_folder: Path
    microbatch_tokens: int
    checkpoint_every: int
    on_progress: Callable[[Progress], None]
    on_private_metrics: Callable[[PrivateMetrics], None]


def train(run: Run, *, resume: bool) -> TrainingState:
    """Run all planned steps, or those that are left; installs the weights to be released.

    Raises:
        Interrupted: Ctrl-C; a checkpoint is left.
        CheckpointError: `resume` without a checkpoint of this very job.
        OutputError: the disk is full; the last checkpoint stays.
    """
    state = _state(run)
    store = CheckpointStore(run.private_folder / "checkpoints")
    journal = Journal(run.private_folder / "journal.jsonl")
    identity = _identity(run)
    if resume:
        state.restore(store.load(identity))
    step = _stepper(run, state, journal)
    clock = _Clock(state.step, run.plan.steps, EpsilonCurve.of(run.plan))
    with deferred_interrupt() as interrupt:
        while state.step < run.plan.steps:
            counts = step()
            journal.write({"step": state.step})
            _report(run, state.step, counts, clock)
            last = state.step == run.plan.steps
            if last or interrupt.raised or state.step % run.checkpoint_every == 0:
                store.save(state.tensors(), identity)
            if interrupt.raised and not last:
                raise Interrupted(state.step, run.plan.steps)
    state.finish()
    return state


def _state(run: Run) -> TrainingState:
    parameters = trainable_parameters(run.loss)
    return TrainingState(parameters, run.plan.optimizer(), private=run.plan.privacy is not None)


def _identity(run: Run) -> dict[str, Any]:
    plan = run.plan.model_dump(exclude={"reasons"}, mode="json")
    data = hashlib.sha256(run.dataset.fingerprint.encode()).hexdigest()
    return {**plan, "data": data}


def _stepper(run: Run, state: TrainingState, journal: Journal) -> Callable[[], ClipCounts]:
    limits = _limits(run, state)
    if run.plan.privacy is None:
        order = _EpochOrder(run.plan)
        return lambda: ordinary_step(run.loss, run.dataset, order.at(state.step), state, limits)
    mechanism = run.plan.mechanism(tuple(state.parameters))
    streams = Streams.fresh()
    journal.write(
        {
            "start": state.step,
            "sampling_stream": streams.sampling.identity,
            "noise_stream": streams.noise.identity,
        }
    )
    return lambda: private_step(run.loss, run.dataset, mechanism, state, streams, limits)


def _limits(run: Run, state: TrainingState) -> BatchLimits:
    trained = sum(value.numel() for value in state.parameters.values())
    units = max(1, _GRADIENT_BYTES // (4 * trained))
    return BatchLimits(run.microbatch_tokens, units, run.plan.max_tokens)


class _EpochOrder:
    """Shuffled epochs for ordinary training; never used in a private run (PITFALLS 3)."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._n_units, self._batch_size = plan.n_units, plan.batch_size
        self._seed = plan.adapter.seed

    def at(self, step: int) -> NDArray[np.int64]:
        """The units of one step."""
        per_epoch = -(-self._n_units // self._batch_size)
        epoch, position = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(self._n_units, generator=generator).numpy()
        start = position * self._batch_size
        return order[start : start + self._batch_size].astype(np.int64)


class _Clock:
    def __init__(self, first_step: int, steps: int, curve: EpsilonCurve) -> None:
        self._first, self._steps, self._curve = first_step, steps, curve
        self._start = time.monotonic()

    def at(self, step: int) -> Progress:
        elapsed = time.monotonic() - self._start
        per_step = elapsed / max(1, step - self._first)
        left = per_step * (self._steps - step)
        return Progress(step, self._steps, self._curve.at(step), elapsed, left)


def _report(run: Run, step: int, counts: ClipCounts, clock: _Clock) -> None:
    run.on_progress(clock.at(step))
    n = max(1, counts.n_units)
    run.on_private_metrics(
        PrivateMetrics(step, counts.loss_sum / n, counts.norm_sum / n, counts.n_clipped / n)
    )
