"""The whole run, decided before anything is read or spent: from the spec and public facts only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from taciturn.errors import PrivacyParameterError, SpecError
from taciturn.planning import defaults
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.optimizer import OptimizerConfig
from taciturn.spec import DataSpec, FitSpec


class AdapterPlan(BaseModel):
    """Which parameters are trained."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    method: Literal["lora", "full"]
    r: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    head_r: int | None = None
    fixed_a: bool = False
    seed: int = 0


class PrivacyPlan(BaseModel):
    """The mechanism's parameters and what they promise."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    epsilon: float
    delta: float
    noise_multiplier: float
    l2_clip_norm: float


class TrainingPlan(BaseModel):
    """Everything that determines a run, except the rows. Public."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    adapter: AdapterPlan
    privacy: PrivacyPlan | None
    n_units: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    decay: bool
    beta1: float
    beta2: float
    weight_decay: float
    average_decay: float
    max_tokens: int
    max_records_per_unit: int
    reasons: tuple[str, ...] = ()

    @property
    def sampling_probability(self) -> float:
        """Chance of each unit to join a step."""
        return self.batch_size / self.n_units

    @property
    def epochs(self) -> float:
        """Expected number of times each unit is seen."""
        return self.steps * self.sampling_probability

    def optimizer(self) -> OptimizerConfig:
        """The part that the training state needs."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            average_decay=self.average_decay,
        )


@dataclass(frozen=True, slots=True)
class Alternative:
    """One row of the table of nearby choices."""

    epsilon: float
    epochs: float
    batch_size: int
    steps: int
    noise_multiplier: float

    @property
    def remaining_noise(self) -> float:
        """Noise on the mean of all steps' gradients, in clip norms: smaller learns better."""
        return self.noise_multiplier / (self.batch_size * math.sqrt(self.steps))


def make_plan(spec: FitSpec, facts: PublicFacts) -> TrainingPlan:
    """Resolve every default and calibrate the noise.

    Raises:
        PrivacyParameterError: epsilon, delta or batch size cannot give a guarantee for n_units.
        SpecError: a bound that depends on the model, such as max_tokens.
    """
    check_target(spec)
    batch_size = _batch_size(spec, facts)
    steps = _steps(spec, facts, batch_size)
    adapter = adapter_plan(spec, facts)
    choice, why = defaults.adapter_choice(spec, facts)
    privacy = _privacy(spec, facts.n_units, batch_size, steps)
    noise = privacy.noise_multiplier / batch_size if privacy else None
    tuned = defaults.tuning(choice, steps, noise)
    return TrainingPlan(
        adapter=adapter,
        privacy=privacy,
        n_units=facts.n_units,
        batch_size=batch_size,
        steps=steps,
        learning_rate=spec.learning_rate or tuned.learning_rate,
        warmup_steps=tuned.warmup_steps,
        decay=tuned.decay,
        beta1=tuned.beta1,
        beta2=tuned.beta2,
        weight_decay=tuned.weight_decay,
        average_decay=tuned.average_decay,
        max_tokens=max_tokens(spec, facts.context_length),
        max_records_per_unit=spec.max_records_per_unit,
        reasons=(*why, *_of_public_text(spec)),
    )


RATE_FACTORS = (1.0, 0.5, 0.25, 2.0)
"""On the default learning rate of a private fit, tried on public text; the first one wins a tie."""

_RATE_IS_OPEN = (
    "the learning rate is that, a quarter, half or twice of it: whichever does best in simulated "
    "private fits on the public text"
)
_MOST_PUBLIC_STEPS = 640


def public_plan(spec: FitSpec, adapter: AdapterPlan, facts: PublicFacts) -> TrainingPlan:
    """An ordinary fit to public text, by the defaults and of bounded length.

    Args:
        adapter: what is trained, as in the fit that follows.
        facts: `n_units` is the number of public records to learn from.
    """
    asked = {name: getattr(spec, name) for name in ("method", "seed", "max_tokens")}
    plan = make_plan(FitSpec(target_epsilon="unlimited", **asked), facts)
    steps = min(plan.steps, _MOST_PUBLIC_STEPS)
    return plan.model_copy(update={"adapter": adapter, "steps": steps})


def with_rate(plan: TrainingPlan, factor: float) -> TrainingPlan:
    """The plan with the learning rate that was found on public text."""
    rate = plan.learning_rate * factor
    reason = (
        f"learning rate {rate:.3g}, {factor:g} times the default: the best of 0.25, 0.5, 1 and 2 "
        "times it in simulated private fits on the public text"
    )
    reasons = (*(each for each in plan.reasons if each != _RATE_IS_OPEN), reason)
    return plan.model_copy(update={"learning_rate": rate, "reasons": reasons})


def _of_public_text(spec: FitSpec) -> tuple[str, ...]:
    if spec.public_data is None:
        return ()
    first = (
        "an ordinary fit to the public text comes first: it spends nothing, and the guarantee does "
        "not cover that text. Its time is not in the estimate"
    )
    decided = not spec.private or spec.learning_rate is not None
    return (first,) if decided else (first, _RATE_IS_OPEN)


def check_target(spec: FitSpec) -> None:
    """Refuse a job that does not say how private it is; there is no default for that."""
    if spec.target_epsilon is None:
        raise PrivacyParameterError(
            'target_epsilon is not set; choose for example target_epsilon=3, or "unlimited" for '
            "no privacy at all"
        )


def adapter_plan(spec: FitSpec, facts: PublicFacts) -> AdapterPlan:
    """Which parameters will be trained; does not depend on the data."""
    choice, _ = defaults.adapter_choice(spec, facts)
    return AdapterPlan(
        method=choice.method,
        r=choice.r,
        alpha=choice.alpha,
        target_modules=spec.target_modules,
        head_r=choice.head_r,
        fixed_a=choice.fixed_a,
        seed=spec.seed,
    )


def max_tokens(spec: DataSpec, context_length: int) -> int:
    """Tokens kept of a record: what was asked for, or 512, within the model's context."""
    if spec.max_tokens is None:
        return min(512, context_length)
    if spec.max_tokens > context_length:
        raise SpecError(
            f"max_tokens={spec.max_tokens} exceeds the model's context of {context_length}; "
            "lower it"
        )
    return spec.max_tokens


def alternatives(spec: FitSpec, plan: TrainingPlan) -> list[Alternative]:
    """Nearby choices of epsilon x epochs x batch, calibrated with the same accountant."""
    if plan.privacy is None:
        return []
    target = spec.target_epsilon
    base = target if isinstance(target, float) else plan.privacy.epsilon
    rows = []
    for epsilon in (max(0.01, base / 2), base, min(1000.0, base * 2)):
        for epochs in (plan.epochs / 2, plan.epochs, plan.epochs * 2):
            for batch_size in sorted({max(1, plan.batch_size // 2), plan.batch_size}):
                steps = max(1, round(epochs * plan.n_units / batch_size))
                rows.append(_alternative(epsilon, epochs, batch_size, steps, plan))
    return rows


def _alternative(
    epsilon: float, epochs: float, batch_size: int, steps: int, plan: TrainingPlan
) -> Alternative:
    from taciturn.accounting.calibrate import noise_multiplier

    assert plan.privacy is not None
    sigma = noise_multiplier(
        target_epsilon=epsilon,
        delta=plan.privacy.delta,
        sampling_probability=batch_size / plan.n_units,
        steps=steps,
    )
    return Alternative(epsilon, epochs, batch_size, steps, sigma)


def _batch_size(spec: FitSpec, facts: PublicFacts) -> int:
    if spec.batch_size is None:
        return defaults.batch_size(spec, facts)
    if spec.batch_size > facts.n_units:
        raise PrivacyParameterError(
            f"batch_size={spec.batch_size} exceeds the data's n_units={facts.n_units}; "
            f"choose at most {facts.n_units}"
        )
    return spec.batch_size


def _steps(spec: FitSpec, facts: PublicFacts, batch_size: int) -> int:
    if spec.steps is not None:
        return spec.steps
    if spec.epochs is not None:
        return max(1, round(spec.epochs * facts.n_units / batch_size))
    return defaults.steps(spec, facts, batch_size)


def _privacy(spec: FitSpec, n_units: int, batch_size: int, steps: int) -> PrivacyPlan | None:
    if isinstance(spec.target_epsilon, str) or spec.target_epsilon is None:
        return None
    # Not at once: who only reads plans, as clients of a gateway do, needs no accountant.
    from taciturn.accounting.calibrate import check_delta, default_delta, noise_multiplier
    from taciturn.accounting.compose import epsilon as epsilon_of
    from taciturn.accounting.events import dpsgd_event

    delta = default_delta(n_units) if spec.delta is None else spec.delta
    check_delta(delta, n_units)
    probability = batch_size / n_units
    sigma = noise_multiplier(
        target_epsilon=spec.target_epsilon,
        delta=delta,
        sampling_probability=probability,
        steps=steps,
    )
    event = dpsgd_event(sampling_probability=probability, noise_multiplier=sigma, steps=steps)
    return PrivacyPlan(
        epsilon=epsilon_of(event, delta),
        delta=delta,
        noise_multiplier=sigma,
        l2_clip_norm=spec.l2_clip_norm or defaults.L2_CLIP_NORM,
    )
