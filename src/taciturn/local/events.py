"""Public events of a fit and of an evaluation: all that callbacks and trackers are given.

Every field is a plain value that is public or paid for. Nothing here leads to rows, losses, norms,
indices or seeds, and there are no times: how long a step takes depends on the units that it drew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class PlanEvent:
    """The plan of a fit, before its first step is paid for.

    Attributes:
        epsilon: promised; None without privacy, as are delta, noise_multiplier and l2_clip_norm.
        batch_size: expected units of a step.
        rank: of the adapter; None for full fine-tuning.
        reasons: why the plan is so, in words.
        worth: expected worth in words; None where it is not known.
    """

    base_model: str
    privacy_unit: str
    max_records_per_unit: int
    n_units: int
    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    l2_clip_norm: float | None
    sampling_probability: float
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    max_tokens: int
    method: str
    rank: int | None
    reasons: tuple[str, ...]
    worth: str | None


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step is done: the `step`-th of `steps`."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class EpsilonEvent:
    """Privacy spent after `step` steps, rounded up; there are none in a fit without privacy."""

    step: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class CheckpointEvent:
    """A checkpoint from which the run can be resumed was written after `step` steps."""

    step: int


@dataclass(frozen=True, slots=True)
class EvaluationEvent:
    """Figures of an evaluation that may be shown: of public text, or noised and paid for.

    Attributes:
        purpose: evaluate or downstream.
        basis: "public" or "differential privacy".
        epsilon: what the release cost by itself; None if nothing.
        figures: names and values.
    """

    purpose: str
    basis: str
    n_units: int
    epsilon: float | None
    delta: float | None
    figures: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class EndEvent:
    """End of a run.

    Attributes:
        status: complete; stopped by the user or a callback; or failed.
        step: steps that were done, of this run and of those that it resumed; None if none was.
        policy: the guarantee of the model in one line; None if there is no model.
        files: paths of the released files; none if the run did not complete or has no folder.
    """

    status: Literal["complete", "stopped", "failed"]
    step: int | None
    policy: str | None = None
    files: tuple[str, ...] = ()


FitEvent: TypeAlias = (
    PlanEvent | StepEvent | EpsilonEvent | CheckpointEvent | EvaluationEvent | EndEvent
)
Callback: TypeAlias = Callable[[FitEvent], object]
"""Function of one event; what it returns is not looked at."""
