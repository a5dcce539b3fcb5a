"""The optimiser of a run, as public numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with a public schedule: nothing measured on private rows steers it.

    A schedule, an early stop or a choice of checkpoint that follows a loss on private rows would
    release something that nobody has paid for.

    Attributes:
        learning_rate: peak.
        steps: length of the schedule.
        warmup_steps: linear rise to the peak.
        decay: cosine decay to zero after it; otherwise the rate stays at its peak.
        beta1, beta2, weight_decay: as in AdamW (Loshchilov and Hutter 2019).
        average_decay: the released weights are an exponential moving average of the iterates, with
            bias correction; 0 releases the last iterate.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    decay: bool = True
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
        span = max(1, self.steps - self.warmup_steps)
        return (
            self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / span))
        )
