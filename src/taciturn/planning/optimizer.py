"""The optimiser of a run, as public numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with a public schedule: nothing measured on private rows steers it.

    A schedule, an early stop or a choice of checkpoint that follows a loss on private rows would
    release something that nobody has paid for.

    Attributes:
        learning_rate: peak.
        steps: length of the schedule.
        warmup_steps: linear rise to the peak.
        decay: cosine decay to zero after it, or a linear one; otherwise it stays at its peak.
        beta1, beta2, weight_decay: as in AdamW (Loshchilov and Hutter 2019).
        average_decay: the released weights are an exponential moving average of the iterates, with
            bias correction; 0 releases the last iterate.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    decay: bool | Literal["linear"] = True
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    average_decay: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., steps-1."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if not self.decay:
            return self.learning_rate
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.decay == "linear":
            return self.learning_rate * (1 - share)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, slots=True)
class OptimizerChoice:
    """Settings of the optimiser that a caller decides; None leaves one to the plan.

    Attributes:
        warmup: steps, or below 1 a share of all.
    """

    warmup: float | None = None
    decay: bool | Literal["linear"] | None = None
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None

    def settings(self, steps: int) -> dict[str, Any]:
        """Return the fields of a plan of so many steps that are decided."""
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in ("decay", "beta1", "beta2", "weight_decay")
        }
        if self.warmup is not None:
            warmup = self.warmup if self.warmup >= 1 else math.ceil(self.warmup * steps)
            fields["warmup_steps"] = min(int(warmup), steps)
        return {name: value for name, value in fields.items() if value is not None}
