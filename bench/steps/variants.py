"""Ways to make one training step, behind one Protocol: plain loop, ours without and with DP.

The Hugging Face Trainer is in `trainer.py`, Opacus in `opacus_modes.py`. All get the same model,
the same batches, AdamW at one constant rate and the same loss: the mean over records of each
record's own mean over its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from steps.model import Method, ModelShape, trained
from steps.workload import IGNORED, Batch, Workload
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import ClipCounts
from taciturn.engine.training.batch import BatchLimits, filled_units, gains_by_packing
from taciturn.engine.training.graphs import NO_GRAPHS, Graphs
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, ordinary_step, private_step
from taciturn.planning.defaults import L2_CLIP_NORM
from taciturn.planning.optimizer import OptimizerConfig
from taciturn.spec import PerformanceSpec

LEARNING_RATE = 1e-4
NOISE_MULTIPLIER = 1.0
_STEPS = 1_000_000


@dataclass(frozen=True)
class Task:
    """What is to be done, the same for all variants.

    Attributes:
        method: what is trained.
        shape: of the model.
        workload: the batches.
        unit_size: sequences of one privacy unit.
        noise_multiplier, l2_clip_norm: of the private variants.
        max_tokens: of a record at most; where 0, as many as the longest has.
        microbatch: sequences of one forward pass; where 0, all of a batch, and for ours what the
            product would take.
    """

    method: Method
    shape: ModelShape
    workload: Workload
    unit_size: int = 1
    noise_multiplier: float = NOISE_MULTIPLIER
    l2_clip_norm: float = L2_CLIP_NORM
    max_tokens: int = 0
    microbatch: int = 0

    @property
    def units(self) -> int:
        """Privacy units of one batch."""
        return self.workload.sequences // self.unit_size

    @property
    def limits(self) -> BatchLimits:
        """The product's own for draws of this size; one sequence where that is longer."""
        tokens = max(PerformanceSpec().microbatch_tokens or 2048, self.workload.longest)
        max_tokens = self.max_tokens or self.workload.longest
        if self.microbatch:
            return BatchLimits(self.microbatch * max_tokens, self.microbatch, max_tokens)
        places = filled_units(self.units, max_tokens)
        packed = gains_by_packing(self.units, self.unit_size, max_tokens)
        return BatchLimits(tokens, max(places, self.units), max_tokens, places, packed=packed)


Gauge = AbstractContextManager[object]
"""Entered right before the work that is measured, left right after it."""


class Variant(Protocol):
    """One way to train; owns its model and optimiser."""

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """One optimiser step on each batch, inside `gauge`; setting up stays outside of it."""


Builder = Callable[[nn.Module, Task], Variant]


class PlainLoop:
    """Ordinary fine-tuning as one writes it by hand."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model = model
        self._optimizer = adamw(model)
        self._microbatch = task.microbatch
        self._parts: dict[int, list[Batch]] = {}

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        with gauge:
            for batch in batches:
                self._step(batch)

    def _step(self, batch: Batch) -> None:
        parts = split(batch, self._microbatch, self._parts)
        for part in parts:
            # No name holds the logits: they are freed before the backward pass.
            loss = mean_loss(self.model(input_ids=part.input_ids_BT, use_cache=False).logits, part)
            (loss * (len(part.records) / len(batch.records))).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class OrdinaryStep:
    """Ours without DP: what `target_epsilon="unlimited"` runs."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self._task = model, task
        self._loss = CausalLmLoss(model)
        self._dataset = task.workload.dataset(1)
        self._state = training_state(self._loss, private=False)

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        with gauge:
            for batch in batches:
                units = self._task.workload.units_of(batch, 1)
                ordinary_step(self._loss, self._dataset, units, self._state, self._task.limits)


class PrivateStep:
    """Ours with DP: sampling replaced by the batch at hand, everything else as it is."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self._task = model, task
        self._loss = CausalLmLoss(model)
        self._dataset = task.workload.dataset(task.unit_size)
        self._state = training_state(self._loss, private=True)
        self._streams = Streams.fresh()
        self._drawn: list[NDArray[np.int64]] = []
        self._mechanism = chosen_units(self._drawn)(
            n_units=self._dataset.n_units,
            expected_batch_size=task.units,
            steps=_STEPS,
            noise_multiplier=task.noise_multiplier,
            l2_clip_norm=task.l2_clip_norm,
            parameter_names=tuple(self._state.parameters),
        )
        self.counts: list[ClipCounts] = []

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        with gauge:
            for batch in batches:
                self._drawn[:] = [self._task.workload.units_of(batch, self._task.unit_size)]
                self.counts.append(self._step())

    def _step(self) -> ClipCounts:
        return private_step(
            self._loss,
            self._dataset,
            self._mechanism,
            self._state,
            self._streams,
            self._task.limits,
            graphs=self.graphs(),
        )

    def graphs(self) -> Graphs:
        """Recorded microbatches; none here."""
        return NO_GRAPHS


def split(batch: Batch, size: int, known: dict[int, list[Batch]]) -> list[Batch]:
    """Parts of `size` records, whose tensors are made once and kept in `known`."""
    if not size or size >= len(batch.records):
        return [batch]
    if batch.index not in known:
        known[batch.index] = batch.parts(size)
    return known[batch.index]


def chosen_units(drawn: list[NDArray[np.int64]]) -> type[DpSgdMechanism]:
    """A mechanism that draws `drawn[0]`, so that all variants do the same work."""

    class ChosenUnits(DpSgdMechanism):
        def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
            return drawn[0]

    return ChosenUnits


def training_state(loss: nn.Module, *, private: bool) -> TrainingState:
    """The engine's state, with the optimiser settings of all variants."""
    config = OptimizerConfig(LEARNING_RATE, _STEPS, decay=False)
    return TrainingState(trainable_parameters(loss), config, private=private)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """torch's fastest AdamW on a CPU, which is the Trainer's default too."""
    return torch.optim.AdamW(trained(model), lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def mean_loss(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Mean over records of each record's mean over its own targets.

    Targets are shifted instead of logits, which would copy them.
    """
    nll_N = F.cross_entropy(
        logits_BTV.flatten(0, 1),
        batch.next_ids_BT.flatten(),
        reduction="none",
        ignore_index=IGNORED,
    )
    return (nll_N * batch.weights_BT.flatten()).sum() / len(batch.records)
