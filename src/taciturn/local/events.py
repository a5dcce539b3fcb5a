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
        base_model: name of the model that is fitted.
        privacy_unit: column or expression that names whom the guarantee protects.
        max_records_per_unit: records of one unit that are used at most.
        n_units: number of units.
        epsilon: promised; None without privacy, as are delta, noise_multiplier and l2_clip_norm.
        delta: at which epsilon is meant: a probability.
        noise_multiplier: standard deviation of the noise, divided by l2_clip_norm.
        l2_clip_norm: bound on the norm of one unit's gradient.
        sampling_probability: with which a step draws each unit.
        batch_size: expected units of a step.
        steps: optimiser steps that are planned.
        learning_rate: the highest one of the schedule.
        warmup_steps: steps until it is reached.
        max_tokens: tokens of a record that are used at most.
        method: "lora" or "full".
        rank: of the adapter; None for full fine-tuning.
        reasons: why the plan is so, in words.
        worth: expected worth in words; None where it is not known.

    Examples:
        >>> plan = next(event for event in events if isinstance(event, taciturn.PlanEvent))
        >>> plan.n_units, plan.epsilon <= 3
        (40, True)
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
    """A step is done.

    Attributes:
        step: its number, from 1.
        steps: how many are planned.

    Examples:
        >>> [event.step for event in events if isinstance(event, taciturn.StepEvent)]
        [1, 2, 3]
    """

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class EpsilonEvent:
    """Privacy spent so far, rounded up; there are none in a fit without privacy.

    Attributes:
        step: number of steps that are paid for.
        epsilon: of these steps.
        delta: at which epsilon is meant: a probability.

    Examples:
        >>> [event.step for event in events if isinstance(event, taciturn.EpsilonEvent)][-1]
        3
    """

    step: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class CheckpointEvent:
    """A checkpoint was written, from which the run can be resumed.

    Attributes:
        step: number of steps that are in it.

    Examples:
        >>> [event.step for event in events if isinstance(event, taciturn.CheckpointEvent)][-1]
        3
    """

    step: int


@dataclass(frozen=True, slots=True)
class EvaluationEvent:
    """Figures of an evaluation that may be shown: of public text, or noised and paid for.

    Attributes:
        purpose: evaluate or downstream.
        basis: "public" or "differential privacy".
        epsilon: what the release cost by itself; None if nothing.
        figures: names and values.
        n_units: number of units, or of public records, that were judged.
        delta: at which epsilon is meant: a probability; None if nothing was spent.

    Examples:
        >>> seen = []
        >>> evaluation = model.evaluate("public.csv", text_field="text", callbacks=[seen.append])
        >>> [event.purpose for event in seen if isinstance(event, taciturn.EvaluationEvent)]
        ['evaluate']
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

    Examples:
        >>> events[-1].status, events[-1].step
        ('complete', 3)
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
