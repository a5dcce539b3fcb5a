"""Mechanism of a job, whose steps it is charged for, read from its row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dp_accounting.dp_event import DpEvent
from sqlalchemy import Row

from taciturn.accounting.events import dpsgd_event
from taciturn.planning.plan import TrainingPlan
from taciturn.wire.jobs import JobKind


@dataclass(frozen=True, slots=True)
class Mechanism:
    """Mechanism of each step of a job, as it was reserved."""

    sampling_probability: float
    noise_multiplier: float
    steps: int

    @classmethod
    def of(cls, row: Row[Any]) -> Mechanism:
        """Read the mechanism of a job that has an event."""
        plan = json.loads(row.plan)
        if row.kind != JobKind.FIT:
            return cls(1.0, plan["noise_multiplier"], 1)
        training = TrainingPlan(**plan)
        assert training.privacy is not None, "a job without a guarantee has no event"
        noise = training.privacy.noise_multiplier
        return cls(training.sampling_probability, noise, training.steps)

    def event(self, steps: int) -> DpEvent:
        """Event of so many of its steps."""
        return dpsgd_event(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
        )
