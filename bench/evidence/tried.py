"""Private steps that differ from ours around the kernel: tried by bench/tuning.py.

All of it comes after the noise, or weighs a unit's own tokens before its gradient is clipped, so
the guarantee would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taciturn.engine.privacy.types import PrivateGradient, UnitBatch
from taciturn.engine.training import step
from taciturn.engine.training.state import TrainingState
from taciturn.planning.optimizer import OptimizerConfig

_LEAST = 0.25
"""Least second moment of `Debiased`, in variances of the noise: where an estimate from 20 steps is
mostly chance."""


class Shrunk(TrainingState):
    """Each matrix of the released gradient, shrunk by what its noise adds to its norm.

    James and Stein 1961, the positive part.
    """

    def apply(self, private: PrivateGradient) -> None:
        variance = private.noise_std**2
        values = {
            name: value * (1 - value.numel() * variance / value.square().sum()).clamp(min=0)
            for name, value in private.values.items()
        }
        super().apply(PrivateGradient(values, private.noise_std))


class OwnAdam(TrainingState):
    """Adam with another second moment or none of its corrections."""

    corrected = True
    noise_taken_off = False

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, *, private: bool
    ) -> None:
        super().__init__(parameters, config, private=private)
        self._moments = {
            name: (torch.zeros_like(weights), torch.zeros_like(weights))
            for name, weights in self._master.items()
        }

    def apply(self, private: PrivateGradient) -> None:
        done, config = self.step + 1, self.config
        one, two = config.beta1, config.beta2
        for name, weights in self._master.items():
            gradient = private.values[name]
            first, second = self._moments[name]
            first.lerp_(gradient, 1 - one)
            second.lerp_(gradient.square(), 1 - two)
            mean, square = first, second
            if self.corrected:
                mean, square = first / (1 - one**done), second / (1 - two**done)
            if self.noise_taken_off:
                variance = private.noise_std**2
                square = (square - variance).clamp(min=_LEAST * variance)
            weights.sub_(mean / (square.sqrt() + 1e-8), alpha=config.rate(self.step))
        self.step = done
        self._install(self._master)


class Debiased(OwnAdam):
    """Without the noise's variance in the second moment (Tang, Shpilevskiy and Lécuyer 2024)."""

    noise_taken_off = True


class Uncorrected(OwnAdam):
    """Without Adam's corrections of its first steps."""

    corrected = False


def by_tokens(batch: UnitBatch, frequencies_V: Tensor) -> Tensor:
    """Each token of a unit weighs the same, so that a long record weighs more than a short one."""
    return (batch.loss_weights_BT > 0).float()


def rarer(batch: UnitBatch, frequencies_V: Tensor) -> Tensor:
    """Tokens that the base writes seldom weigh more, in proportion to their surprise.

    A row weighs what it did, however many records are in it.
    """
    surprise_BT = -frequencies_V.clamp(min=1e-6).log()[batch.input_ids_BT]
    weights_BT = batch.loss_weights_BT * surprise_BT
    before_B1, now_B1 = (each.sum(1, keepdim=True) for each in (batch.loss_weights_BT, weights_BT))
    return weights_BT * before_B1 / now_B1.clamp(min=1e-12)


@dataclass(frozen=True)
class Variant:
    """What takes the place of ours."""

    state: type[TrainingState] = TrainingState
    weights: Callable[[UnitBatch, Tensor], Tensor] | None = None


SHIPPED = "as shipped"
VARIANTS = {
    SHIPPED: Variant(),
    "shrunk": Variant(state=Shrunk),
    "debiased": Variant(state=Debiased),
    "uncorrected": Variant(state=Uncorrected),
    "by tokens": Variant(weights=by_tokens),
    "rarer": Variant(weights=rarer),
}


@contextmanager
def weighed(variant: Variant, frequencies: Callable[[], Tensor]) -> Iterator[None]:
    """Steps taken meanwhile weigh tokens as the variant does."""
    before: Any = step.microbatches
    weights = variant.weights
    if weights is None:
        yield
        return
    frequencies_V = frequencies()

    def groups(*given: Any) -> Iterator[list[UnitBatch]]:
        for group in before(*given):
            yield [replace(part, loss_weights_BT=weights(part, frequencies_V)) for part in group]

    step.microbatches = groups
    try:
        yield
    finally:
        step.microbatches = before
