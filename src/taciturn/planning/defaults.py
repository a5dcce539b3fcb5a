"""The public defaults behind `method="auto"`: functions of the spec and public facts only."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from taciturn.spec import FitSpec

_TUNED_RANK, _TUNED_PARAMETERS = 16, 4_737_280
"""The adapter's rank and the base model's size that the learning rate was found with."""

L2_CLIP_NORM = 0.1
"""Far below the norm of any unit's gradient, so that all count alike and nothing needs tuning."""

STEPS = (20, 25, 32, 40, 50, 64, 80, 100, 125, 160, 200, 250, 320, 400)
"""Numbers of steps that a private fit may have by default."""

FEWEST_STEPS = STEPS[0]

STEP_NOISE = 1.65e-3
"""Noise on a step's mean gradient, in clip norms, that the largest stable step still bears: where
the two bounds of `tuning` on the learning rate meet."""

_SEEN_ALIKE = 1200


@dataclass(frozen=True, slots=True)
class PublicFacts:
    """All that may decide a default.

    Attributes:
        n_units: number of privacy units, public by policy.
        base_model: its name.
        base_parameters: number of parameters of the base model.
        context_length: longest input it takes, in tokens.
    """

    n_units: int
    base_model: str
    base_parameters: int
    context_length: int


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """Parameters that are trained.

    Attributes:
        fixed_a: LoRA's A matrices are set from public text, by default what the base model writes,
            and only B is trained.
        head_r: rank of an adapter on the output layer, None for none.
    """

    method: Literal["lora", "full"]
    r: int | None = None
    alpha: float | None = None
    fixed_a: bool = False
    head_r: int | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """Optimiser settings that the user may leave open."""

    learning_rate: float
    warmup_steps: int
    decay: bool
    beta1: float
    beta2: float
    weight_decay: float
    average_decay: float


def adapter_choice(spec: FitSpec, facts: PublicFacts) -> tuple[AdapterChoice, tuple[str, ...]]:
    """The method and adapter, and why, in words."""
    if spec.method == "full":
        return AdapterChoice("full"), ("full fine-tuning, as asked",)
    if spec.method == "lora":
        rank = spec.r or 8
        return (
            AdapterChoice("lora", rank, spec.alpha or 2.0 * rank),
            (f"LoRA of rank {rank}, as asked",),
        )
    rank = spec.r or 16
    if not spec.private:
        reason = f"LoRA of rank {rank}: keeps the base model as it is and the adapter small"
        return AdapterChoice("lora", rank, spec.alpha or 2.0 * rank), (reason,)
    source = "text that the base model writes itself"
    if spec.public_data is not None:
        source = "the public text"
    reason = (
        f"LoRA of rank {rank} with its A matrices fixed to directions learned from {source}: DP "
        "noise grows with the number of trained parameters, so only the B matrices are trained, "
        "and a small adapter on the output layer"
    )
    return AdapterChoice("lora", rank, float(rank), fixed_a=True, head_r=4), (reason,)


def batch_and_steps(
    spec: FitSpec,
    facts: PublicFacts,
    noise: Callable[[int, int], float],
    most_units: float | None = None,
) -> tuple[int, int]:
    """Expected units per step, and how many steps, as far as the spec leaves them open.

    The work of a fit is batch x steps, the units seen, and has a limit. For the same work, few
    steps of many units leave the least noise on the mean of all steps' gradients, least of all with
    every unit in every step. But that mean moves the weights no further than so many steps can. So
    a private fit takes as many steps as it can while the noise of a single step stays below
    STEP_NOISE, and FEWEST_STEPS where even so few are noisier. It does not take all of its limit
    where more work leaves no less noise.

    Args:
        noise: the noise multiplier of a batch size and a number of steps.
        most_units: the limit; None for `default_units`.
    """
    if not spec.private:
        return _ordinary(spec, facts, most_units)
    n, units = facts.n_units, default_units(facts.n_units) if most_units is None else most_units
    if spec.epochs is not None:
        units = spec.epochs * n
    if spec.steps is not None:
        return spec.batch_size or _batch(n, units, spec.steps), spec.steps
    if spec.batch_size is not None:
        if spec.epochs is not None:
            return spec.batch_size, max(1, round(units / spec.batch_size))
        # Of batches whose size is given, more are less noise.
        affordable = int(units / spec.batch_size)
        fewest = 1 if most_units is not None else FEWEST_STEPS
        return spec.batch_size, max(fewest, min(affordable, STEPS[-1]))
    if units < FEWEST_STEPS:
        return 1, max(1, int(units))
    quiet = bisect_left(
        STEPS, True, lo=1, key=lambda steps: not _quiet(noise, _batch(n, units, steps), steps)
    )
    steps = STEPS[quiet - 1]
    batch = _batch(n, units, steps)
    return batch, steps if spec.epochs is None else max(1, round(units / batch))


def default_units(n_units: int) -> float:
    """Units that a private fit sees where nobody says how long it may take: batch x steps.

    Every unit FEWEST_STEPS times, of a thousand; of more units each less often, since more of them
    need less work each to be learned as well.
    """
    return FEWEST_STEPS * min(n_units, math.sqrt(n_units * _SEEN_ALIKE))


def _batch(n_units: int, units: float, steps: int) -> int:
    return max(1, min(n_units, int(units / steps)))


def _quiet(noise: Callable[[int, int], float], batch: int, steps: int) -> bool:
    return noise(batch, steps) / batch <= STEP_NOISE


def _ordinary(spec: FitSpec, facts: PublicFacts, most_units: float | None) -> tuple[int, int]:
    """Three epochs of small batches, or what there is time for."""
    batch = spec.batch_size or min(facts.n_units, 32)
    if spec.steps is not None:
        affordable = batch if most_units is None else int(most_units / spec.steps)
        return (spec.batch_size or max(1, min(batch, affordable))), spec.steps
    if spec.epochs is not None:
        return batch, max(1, round(spec.epochs * facts.n_units / batch))
    steps = max(1, math.ceil(3 * facts.n_units / batch))
    return batch, steps if most_units is None else max(1, min(steps, int(most_units / batch)))


def tuning(choice: AdapterChoice, facts: PublicFacts, n_steps: int, noise: float | None) -> Tuning:
    """Learning rate and schedule.

    Without decay, most of the signal survives the noise: with gradients that are mostly noise, a
    step's signal grows with its rate and its damage with the rate squared, so equal steps are best.
    By the same sum the best rate is proportional to signal over noise, until curvature limits it.
    That limit falls with the number of trained parameters, all of which are noisy: by
    simulated trials, with the root of the adapter's rank and of the base model's size
    (`bench/tuning.py`, on models of 4.7 and 135 million parameters).

    Args:
        choice: what is trained.
        facts: of the base model.
        n_steps: length of the run.
        noise: standard deviation of the noise on the mean gradient, in clip norms; None without DP.
    """
    if noise is None:
        rate = 2e-3 if choice.method == "lora" else 5e-4
        return Tuning(rate, n_steps // 20, True, 0.9, 0.999, 0.01, 0.0)
    if choice.fixed_a:
        rank = choice.r or _TUNED_RANK
        size = _TUNED_PARAMETERS * _TUNED_RANK / (max(1, facts.base_parameters) * rank)
        steepest = 2e-2 * math.sqrt(32 / max(32, n_steps)) * min(1.0, math.sqrt(size))
        return Tuning(min(3.3e-5 / noise, steepest), n_steps // 20, False, 0.9, 0.99, 0.0, 0.0)
    rate = 1e-2 if choice.method == "lora" else 2e-3
    return Tuning(rate, n_steps // 10, True, 0.9, 0.99, 0.0, 0.0)
