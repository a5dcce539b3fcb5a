"""The loop around the step: resume, checkpoints, progress, Ctrl-C."""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from taciturn.accounting.compose import epsilon_curve
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.model.determinism import deterministic_kernels
from taciturn.engine.model.loss import can_pack
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.privacy.types import ClipCounts
from taciturn.engine.privacy.verification import long_public_batch, packs, same_in_company
from taciturn.engine.training.batch import (
    BatchLimits,
    filled_units,
    gains_by_packing,
    width_steps,
)
from taciturn.engine.training.checkpoint import CheckpointStore, StepJournal, all_rows, own_rows
from taciturn.engine.training.graphs import NO_GRAPHS, Graphs, recorded, recorder_of
from taciturn.engine.training.interrupt import deferred_interrupt
from taciturn.engine.training.mechanism import planned_mechanism
from taciturn.engine.training.memory import free_tokens, gradient_units, microbatch_peak
from taciturn.engine.training.processes import any_process, tell, together
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, ordinary_step, private_step
from taciturn.errors import MemoryLimitError
from taciturn.planning.plan import EXPLANATIONS, TrainingPlan

_CURVE_POINTS = 24
STARTED_TOGETHER = 8
"""So many times fewer tokens take no longer than one, where kernels are; measured on no device:
"starts of kernels" in bench/gpu.py does."""
# Never answered by smaller microbatches: who was drawn would be seen in what comes after.
_NO_ROOM = (
    "the device has too little free memory for a microbatch; end what else uses it, or run again "
    "with --resume and a smaller microbatch_tokens, or gradient_checkpointing=True"
)


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; a checkpoint was left at `step`."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step} of {steps}; run again with --resume to go on")
        self.step = step


@dataclass(frozen=True, slots=True)
class TrainingProgress:
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
class Blocks:
    """Steps run in blocks, and none before it is allowed: a gateway's ledger charges it first.

    A checkpoint is written before each block, so a crash costs at most one block's charge more.

    Attributes:
        size: steps of a block; public.
        allow: called with a block's first step and its number of steps; returns when they may run.
    """

    size: int
    allow: Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: what is trained, on what, and where its private state is kept.

    Attributes:
        graphs: whether microbatches are recorded as CUDA graphs, if they can be.
        records: of a unit, at most.
        before_steps: called in all processes when it is certain that steps will run, and none has.
        on_checkpoint: called in the first process after a checkpoint of so many steps was written.
        stop: asked in each process after a step; true in any of them stops the run as Ctrl-C does.
    """

    loss: nn.Module
    dataset: TokenizedDataset
    plan: TrainingPlan
    vocabulary: int
    private_folder: Path
    microbatch_tokens: int
    form: Form
    checkpoint_every: int
    on_progress: Callable[[TrainingProgress], None]
    on_private_metrics: Callable[[PrivateMetrics], None]
    graphs: bool = False
    records: int = 1
    ranks: Ranks = ALONE
    blocks: Blocks | None = None
    before_steps: Callable[[], None] = lambda: None
    on_checkpoint: Callable[[int], None] = lambda step: None
    stop: Callable[[], bool] = lambda: False


def train(run: Run, *, resume: bool) -> TrainingState:
    """Run all planned steps, or those that are left; installs the weights to be released.

    Raises:
        Interrupted: Ctrl-C; a checkpoint is left.
        CheckpointError: `resume` without a checkpoint of this very job.
        OutputError: the disk is full; the last checkpoint stays.
        MemoryLimitError: the device is full; the last checkpoint stays.
    """
    state = _state(run)
    private = run.plan.privacy is not None
    with deterministic_kernels(state.device) if private else nullcontext():
        try:
            return _train(run, state, resume=resume)
        except torch.OutOfMemoryError as error:
            raise MemoryLimitError(_NO_ROOM) from error


def _train(run: Run, state: TrainingState, *, resume: bool) -> TrainingState:
    store = CheckpointStore(run.private_folder / "checkpoints")
    journal = StepJournal(run.private_folder / "journal.jsonl")
    identity = _identity(run)
    if resume:
        with together(run.ranks):
            state.restore(own_rows(store.load(identity), state.parameters, run.ranks))
    elif run.blocks is not None:
        _save(run, state, store, identity)
    step = _stepper(run, state, journal)
    run.before_steps()
    clock = _Clock(state.step, run.plan.steps, EpsilonCurve.of(run.plan))
    with deferred_interrupt() as interrupt:
        last_allowed = state.step
        while state.step < run.plan.steps:
            if state.step == last_allowed:
                last_allowed += _next_block(run, last_allowed)
            counts = step()
            last = state.step == run.plan.steps
            with together(run.ranks):
                if run.ranks.first:
                    journal.write({"step": state.step})
                    _report(run, state.step, counts, clock)
            stopped = any_process(run.ranks, interrupt.raised or run.stop())
            checkpoint_due = run.blocks is None and state.step % run.checkpoint_every == 0
            if (
                last
                or stopped
                or checkpoint_due
                or (run.blocks is not None and state.step == last_allowed)
            ):
                _save(run, state, store, identity)
            if stopped and not last:
                raise Interrupted(state.step, run.plan.steps)
    state.finish()
    return state


def _next_block(run: Run, first: int) -> int:
    """Return the number of steps that may run now: all of them, where nobody has to be asked."""
    steps_left = run.plan.steps - first
    if run.blocks is None:
        return steps_left
    count = min(run.blocks.size, steps_left)
    with together(run.ranks):
        if run.ranks.first:
            run.blocks.allow(first, count)
    return count


def _save(
    run: Run, state: TrainingState, store: CheckpointStore, identity: Mapping[str, Any]
) -> None:
    """Rank 0 writes the checkpoint; the others wait, so that none runs ahead of a full disk."""
    tensors = all_rows(state.tensors(), state.parameters, run.ranks)
    with together(run.ranks):
        if run.ranks.first:
            store.save(tensors, identity)
            run.on_checkpoint(state.step)


def _state(run: Run) -> TrainingState:
    parameters = trainable_parameters(run.loss)
    return TrainingState(parameters, run.plan.optimizer(), private=run.plan.privacy is not None)


def _identity(run: Run) -> dict[str, Any]:
    plan = run.plan.model_dump(exclude=set(EXPLANATIONS), mode="json")
    data = hashlib.sha256(run.dataset.fingerprint.encode()).hexdigest()
    return {**plan, "data": data}


def _stepper(run: Run, state: TrainingState, journal: StepJournal) -> Callable[[], ClipCounts]:
    limits, graphs = _prepared(run)
    if run.plan.privacy is None:
        order = EpochOrder(run.plan, run.dataset.n_units)
        return lambda: ordinary_step(
            run.loss, run.dataset, order.at(state.step), state, limits, run.ranks
        )
    mechanism = planned_mechanism(run.plan, tuple(state.parameters))
    streams = Streams.fresh()
    _note_start(run, state.step, streams, journal, graphs)
    return lambda: private_step(
        run.loss, run.dataset, mechanism, state, streams, limits, run.form, run.ranks, graphs
    )


def _note_start(
    run: Run, step: int, streams: Streams, journal: StepJournal, graphs: Graphs
) -> None:
    """One line: how microbatches are computed, and the streams of each process that draws.

    All add noise, rank 0 alone samples.
    """
    noise = tell(run.ranks, streams.noise.identity)
    entry = {"start": step, "sampling_stream": streams.sampling.identity, "noise_stream": noise[0]}
    with together(run.ranks):
        if run.ranks.first:
            noise_of_others = {"noise_streams_of_others": noise[1:]} if noise[1:] else {}
            journal.write(entry | noise_of_others | {"microbatches": str(graphs)})


def batch_limits(
    plan: TrainingPlan, loss: nn.Module, tokens: int, ranks: Ranks, *, recorded: bool = False
) -> BatchLimits:
    """Limits of a microbatch, from public facts: shapes, the device, `tokens` at most.

    Args:
        recorded: kernels are started together, so that fewer tokens take no longer than one.
    """
    free = free_tokens(loss) // (STARTED_TOGETHER if recorded else 1)
    share = plan.batch_size // ranks.size
    longest = plan.record_tokens
    steps = width_steps(share, longest, free)
    places = filled_units(share, longest, steps)
    # More places than units that are drawn would be fillers, whatever they take.
    units = min(gradient_units(loss), max(places, share))
    return BatchLimits(tokens, units, longest, places, free, steps)


def _prepared(run: Run) -> tuple[BatchLimits, Graphs]:
    """Microbatches in which no unit's gradient depends on the others: of one unit if need be.

    Recorded ones if they are wanted, and give the same bits on all processes.
    """
    limits = partial(batch_limits, run.plan, run.loss, run.microbatch_tokens, run.ranks)
    if run.plan.privacy is None:
        return replace(limits(), packed=_packs(run)), NO_GRAPHS
    if run.graphs:
        of_graphs = limits(recorded=True)
        graphs = _graphs(run, of_graphs)
        if _everywhere(run, bool(graphs.recordings)):
            _rehearse(run, of_graphs)
            return of_graphs, graphs
        graphs = Graphs(reason=graphs.reason or "another process has none")
    else:
        graphs = NO_GRAPHS
    ordinary = _ordinary(run, limits())
    _rehearse(run, ordinary)
    return ordinary, graphs


def _ordinary(run: Run, limits: BatchLimits) -> BatchLimits:
    """Microbatches without recordings: packed ones, or else others, or else of one unit."""
    packed = _packs(run)
    for choice in dict.fromkeys((packed, False)):
        ordinary = replace(limits, packed=choice)
        if _everywhere(run, _same_in_company(run, ordinary)):
            return ordinary
    return replace(limits, units=1, packed=packed)


def _graphs(run: Run, limits: BatchLimits) -> Graphs:
    recorder = recorder_of(next(run.loss.parameters()).device)
    if recorder is None or not _same_in_company(run, limits):
        return Graphs(reason="units are computed one by one")
    return recorded(run.loss, run.vocabulary, limits.shapes(run.records), run.form, recorder)


def _same_in_company(run: Run, limits: BatchLimits) -> bool:
    """A GPU has other kernels for other shapes, so that every one is tried there.

    Elsewhere the shortest and the longest records, one of each unit and as many as there may be.
    """
    shapes = limits.shapes(run.records)
    if not limits.free_tokens:
        of_counts = [list(lengths) for _, lengths in groupby(shapes, key=lambda shape: shape[1])]
        few, many = of_counts[0], of_counts[-1]
        shapes = list(dict.fromkeys((few[0], few[-1], many[0], many[-1])))
    return all(
        same_in_company(
            run.loss, run.vocabulary, (units, width), run.form, records, packed=limits.packed
        )
        for units, records, width in shapes
    )


def _packs(run: Run) -> bool:
    """True if a unit's records share rows: in all processes, or in none."""
    share, longest = run.plan.batch_size // run.ranks.size, run.plan.max_tokens
    if not gains_by_packing(share, run.records, longest) or not can_pack(run.loss):
        return False
    return _everywhere(run, packs(run.loss, run.vocabulary, longest))


def _everywhere(run: Run, own: bool) -> bool:
    return bool(min(int(row[0]) for row in run.ranks.numbers([own])))


def _rehearse(run: Run, limits: BatchLimits) -> None:
    """Compute the longest record alone, as it may be drawn, and instantiated, as `settle` does.

    A device that has no room for it fails now, and not when somebody with such a record is drawn.
    Larger microbatches have been computed to compare companies.
    """
    device = next(run.loss.parameters()).device
    if device.type != "cuda":
        return
    batch = long_public_batch(run.vocabulary, limits.widths[-1], packed=limits.packed)
    record = batch.alone(0).to(device)
    for form in {run.form, Form.INSTANTIATE}:
        microbatch_peak(run.loss, record, form, private=True)


class EpochOrder:
    """Shuffled epochs for ordinary training; never used on private rows in a private run."""

    def __init__(self, plan: TrainingPlan, n_units: int) -> None:
        """`n_units` are there, whatever was declared; the plan says how many steps there are."""
        self._n_units, self._batch_size = n_units, plan.batch_size
        self._seed = plan.adapter.seed

    def at(self, step: int) -> NDArray[np.int64]:
        """The units of one step."""
        per_epoch = max(1, -(-self._n_units // self._batch_size))
        epoch, position = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(self._n_units, generator=generator).numpy()
        start = position * self._batch_size
        return order[start : start + self._batch_size].astype(np.int64)


class _Clock:
    def __init__(self, first_step: int, steps: int, curve: EpsilonCurve) -> None:
        self._first, self._steps, self._curve = first_step, steps, curve
        self._start = time.monotonic()

    def at(self, step: int) -> TrainingProgress:
        elapsed = time.monotonic() - self._start
        per_step = elapsed / max(1, step - self._first)
        seconds_left = per_step * (self._steps - step)
        return TrainingProgress(step, self._steps, self._curve.at(step), elapsed, seconds_left)


def _report(run: Run, step: int, counts: ClipCounts, clock: _Clock) -> None:
    run.on_progress(clock.at(step))
    n = max(1, counts.n_units)
    run.on_private_metrics(
        PrivateMetrics(step, counts.loss_sum / n, counts.norm_sum / n, counts.n_clipped / n)
    )
