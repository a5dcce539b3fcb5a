"""Estimate of what a plan will take: microbatches of public random tokens, run, measured and scaled
up."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from taciturn.engine.privacy.forms import Form, Rates, keeps_factors, rates_of
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training.batch import BatchLimits, bucket_length, width_steps
from taciturn.engine.training.loop import batch_limits
from taciturn.engine.training.memory import (
    MemoryEstimate,
    compute_microbatch,
    free_tokens,
    gradient_units,
    memory_estimate,
    microbatch_peak,
    random_batch,
)
from taciturn.planning.plan import TrainingPlan

_DRAW = 256  # units


@dataclass(frozen=True, slots=True)
class Workload:
    """Shapes of the microbatches of a run.

    Attributes:
        tokens_per_unit: mean over units, all records of a unit together.
        microbatch_tokens: tokens of one physical microbatch, padding included.
        vocabulary: number of token ids.
        form: how per-unit gradients are kept.
    """

    tokens_per_unit: float
    microbatch_tokens: int
    vocabulary: int
    form: Form


@dataclass(frozen=True, slots=True)
class FormChoice:
    """Form of the per-unit gradients of `count` trained parameters of one shape."""

    shape: tuple[int, ...]
    count: int
    form: str


def estimate_seconds(loss: nn.Module, plan: TrainingPlan, work: Workload) -> float:
    """Expected duration of the steps of `plan`, data preparation and saving not included."""
    limits = batch_limits(plan, loss, work.microbatch_tokens, ALONE)
    private = plan.privacy is not None
    return _seconds_of_a_draw(loss, limits, work, plan.batch_size, private=private) * plan.steps


def measured_seconds_per_unit(loss: nn.Module, max_tokens: int, work: Workload) -> float:
    """Seconds that the gradient of a unit of `work.tokens_per_unit` public random tokens takes.

    In full microbatches, since a plan's batch isn't known yet; on a GPU, as one of a draw of 256.
    Every process of a sharded model has to call this, and all run as many microbatches.
    """
    free = free_tokens(loss)
    steps = width_steps(_DRAW, max_tokens, free)
    units = gradient_units(loss)
    limits = BatchLimits(work.microbatch_tokens, units, max_tokens, free_tokens=free, steps=steps)
    return _seconds_of_a_draw(loss, limits, work, _DRAW, private=True) / _DRAW


def _seconds_of_a_draw(
    loss: nn.Module, limits: BatchLimits, work: Workload, units: int, *, private: bool
) -> float:
    """Seconds that all microbatches of a draw of so many typical units take."""
    width = _width(limits, work)
    batch = random_batch(
        work.vocabulary, limits.units_of(width, 1), width, next(loss.parameters()).device
    )
    seconds = _seconds(loss, batch, work.form, private=private)
    if not limits.free_tokens:
        return seconds * work.tokens_per_unit * units / batch.input_ids_BT.numel()
    # Half of the last microbatch of each length is fillers, which take as long as units do.
    return seconds * (units / batch.n_units + len(limits.widths) / 2)


def _width(limits: BatchLimits, work: Workload) -> int:
    """Padded tokens of a typical unit."""
    return bucket_length(max(2, round(work.tokens_per_unit)), limits.max_tokens, limits.steps)


def _seconds(loss: nn.Module, batch: UnitBatch, form: Form, *, private: bool) -> float:
    """The median of three tries, after one that warms up."""
    device = batch.input_ids_BT.device
    tries = []
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        compute_microbatch(loss, batch, form, private=private)
        _wait(device)
        tries.append(time.perf_counter() - start)
    return statistics.median(tries[1:])


def _wait(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured_memory(
    loss: nn.Module, plan: TrainingPlan, work: Workload, device: torch.device
) -> int:
    """Bytes that the largest microbatch takes, to hold `estimate_memory` against."""
    width, sequences = _shape(loss, plan, work)
    batch = random_batch(work.vocabulary, sequences, width, device)
    return microbatch_peak(loss, batch, work.form, private=plan.privacy is not None)


def estimate_memory(
    loss: nn.Module, plan: TrainingPlan, work: Workload, device: torch.device
) -> MemoryEstimate:
    """Peak memory of the steps of `plan`."""
    width, sequences = _shape(loss, plan, work)
    few, many = max(1, sequences // 4), max(2, sequences // 2)
    small, large = (random_batch(work.vocabulary, n, width, device) for n in (few, many))
    tokens = max(width * sequences, plan.record_tokens)
    private = plan.privacy is not None
    return memory_estimate(loss, small, large, tokens, work.form, private=private)


def form_choices(loss: nn.Module, plan: TrainingPlan, work: Workload) -> list[FormChoice]:
    """Choice of the planner for each shape of trained parameter; follows from shapes alone."""
    width, sequences = _shape(loss, plan, work)
    parameters = trainable_parameters(loss).values()
    shapes = Counter(tuple(value.shape) for value in parameters)
    rates = {tuple(value.shape): rates_of(value.device, value.dtype) for value in parameters}
    return [
        FormChoice(shape, count, _form(shape, width, sequences, work.form, rates[shape]))
        for shape, count in sorted(shapes.items(), key=lambda item: item[0], reverse=True)
    ]


def _form(shape: tuple[int, ...], width: int, sequences: int, form: Form, rates: Rates) -> str:
    if len(shape) == 2 and keeps_factors(
        form, shape[0], shape[1], rows=width, units=sequences, rates=rates
    ):
        return "factors, norms from Gram matrices"
    if sequences == 1:
        return "one unit at a time: the ordinary gradient"
    return "instantiated"


def _shape(loss: nn.Module, plan: TrainingPlan, work: Workload) -> tuple[int, int]:
    """Padded tokens of a typical unit, and how many such units one microbatch has."""
    limits = batch_limits(plan, loss, work.microbatch_tokens, ALONE)
    width = _width(limits, work)
    return width, limits.units_of(width, 1)
