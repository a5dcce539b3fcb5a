"""A DP-SGD step with every decision exposed, and the least that it needs around it.

`Variant()` is what the package runs: `private_step`, `DpSgdMechanism`, `Streams.fresh` and the
loss. A mutant (broken_steps.py and the like) replaces one part. The checks (checks.py) see only
what a step does: which units it reads, which gradients it releases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taciturn.data.tokens.store import TokenizedRecord
from taciturn.engine.model.loss import weighted_cross_entropy
from taciturn.engine.privacy import clipping
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import PerUnitGradients, PrivateGradient, UnitBatch
from taciturn.engine.training.step import Streams, private_step
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import TrainingPlan, make_plan
from taciturn.spec import FitSpec

VOCABULARY = 23
WIDTH = 6
MAX_TOKENS = 128


class Dataset:
    """Units of random records in memory; notes which units a step reads."""

    def __init__(self, units: list[list[int]], seed: int = 0) -> None:
        """`units`: for each unit, the lengths of its records."""
        generator = np.random.default_rng(seed)
        self.units = [[_record(generator, length) for length in unit] for unit in units]
        self.n_units = len(units)
        self.read: list[int] = []

    def records(self, unit: int) -> list[TokenizedRecord]:
        """What a step asks for."""
        self.read.append(unit)
        return self.units[unit]

    def lengths(self, unit: int) -> list[int]:
        """What dealing asks for."""
        return [len(record.input_ids) for record in self.units[unit]]


def _record(generator: np.random.Generator, length: int) -> TokenizedRecord:
    targets = np.ones(length, dtype=np.bool_)
    targets[0] = False
    return TokenizedRecord(generator.integers(VOCABULARY, size=length, dtype=np.int32), targets)


class State:
    """Collects what a step releases instead of training with it."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.device = torch.device("cpu")
        self.released: list[PrivateGradient] = []

    def apply(self, private: PrivateGradient) -> None:
        """What a step calls with the released gradient."""
        self.released.append(private)


LossOf = Callable[[Tensor, Tensor, Tensor], Tensor]


class TinyLm(nn.Module):
    """The least that is a language model: an embedding tied to the head, with a norm between.

    Every position sees all tokens before it, through a running mean.
    """

    def __init__(self, loss_of: LossOf) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.loss_of = loss_of
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator))
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator))

    def forward(self, batch: UnitBatch) -> Tensor:
        x_BTD = F.embedding(batch.input_ids_BT, self.table)
        counts_T1 = torch.arange(1, x_BTD.shape[1] + 1).unsqueeze(-1)
        hidden_BTD = self.inner(x_BTD.cumsum(1) / counts_T1).tanh() * self.scale
        logits_BTV = F.linear(hidden_BTD, self.table)
        return self.loss_of(logits_BTV, batch.input_ids_BT, batch.loss_weights_BT)


def names_of(model: nn.Module) -> tuple[str, ...]:
    """The trainable parameters' names, in order."""
    return tuple(name for name, value in model.named_parameters() if value.requires_grad)


Step = Callable[..., Any]
Plan = Callable[[FitSpec, PublicFacts, int], TrainingPlan]


def plan_of_the_job(spec: FitSpec, facts: PublicFacts, ranks: int) -> TrainingPlan:
    """What `worker.fit` does in every process: the plan knows of no ranks."""
    return make_plan(spec, facts)


def as_factors(loss: nn.Module, batch: UnitBatch) -> PerUnitGradients:
    """Gradients whose norms come from Gram matrices."""
    return per_example_gradients(loss, batch, Form.FACTORS)


@dataclass(frozen=True)
class Variant:
    """One way to make a step; the defaults are the package's."""

    step: Step = private_step
    mechanism: type[DpSgdMechanism] = DpSgdMechanism
    loss_of: LossOf = weighted_cross_entropy
    streams: Callable[[int], Streams] = lambda user_seed: Streams.fresh()
    gradients: Callable[[nn.Module, UnitBatch], PerUnitGradients] = per_example_gradients
    factors: Callable[[nn.Module, UnitBatch], PerUnitGradients] = as_factors
    norms: Callable[[PerUnitGradients], Tensor] = clipping.unit_norms
    plan: Plan = plan_of_the_job


REAL = Variant()
