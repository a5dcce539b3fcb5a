"""The whole run, decided before anything is read or spent: from the spec and public facts only."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict

from taciturn.errors import PrivacyParameterError, SpecError
from taciturn.planning import defaults
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.optimizer import OptimizerConfig
from taciturn.planning.worth import Worth, expected_share, expected_worth
from taciturn.spec import DataSpec, FitSpec, Objective

TOKENS_PER_UNIT = 64
"""Of a unit, where how long units are is not known, or must not decide: it is private."""

EXPLANATIONS = frozenset({"reasons", "base_parameters", "seconds_per_unit"})
"""Fields of a plan that say why it is so; two plans that differ in them alone run alike."""


class AdapterPlan(BaseModel):
    """Parameters that are trained."""

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


@dataclass(frozen=True, slots=True)
class Speed:
    """Time that a unit takes where a fit will run, from public facts alone.

    Attributes:
        basis: what that was found by, in words.
    """

    seconds_per_unit: float
    basis: str


class TrainingPlan(BaseModel):
    """Everything that determines a run, except the rows. Public.

    Attributes:
        objective: what is learned: a text, or a preference between two answers.
        beta: of the preference's loss; None where a text is learned.
        base_parameters: of the base model; None in plans of older versions.
        seconds_per_unit: what max_minutes was reckoned with; None without it.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    adapter: AdapterPlan
    privacy: PrivacyPlan | None
    n_units: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    decay: bool | Literal["linear"]
    beta1: float
    beta2: float
    weight_decay: float
    average_decay: float
    max_tokens: int
    max_records_per_unit: int
    objective: Objective = "sft"
    beta: float | None = None
    reasons: tuple[str, ...] = ()
    base_parameters: int | None = None
    seconds_per_unit: float | None = None

    @property
    def record_tokens(self) -> int:
        """Tokens of the longest record: a pair of answers is two sequences."""
        return self.max_tokens * (2 if self.objective == "dpo" else 1)

    @property
    def units_seen(self) -> int:
        """Expected number of units of all steps together: what the time of a fit grows with."""
        return self.batch_size * self.steps

    @property
    def remaining_noise(self) -> float | None:
        """Noise on the mean of all steps' gradients, in clip norms; None without privacy."""
        if self.privacy is None:
            return None
        return _remaining(self.privacy.noise_multiplier, self.batch_size, self.steps)

    @property
    def worth(self) -> Worth | None:
        """Expected share of an ordinary fit's gain; None without privacy and for preferences."""
        noise = self.remaining_noise
        if self.privacy is None or noise is None or self.base_parameters is None:
            return None
        if self.objective == "dpo":  # measured for texts alone
            return None
        auto = self.adapter.fixed_a
        return expected_worth(
            remaining_noise=noise,
            n_units=self.n_units,
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            parameters=self.base_parameters,
            method="auto" if auto else self.adapter.method,
        )

    @property
    def sampling_probability(self) -> float:
        """Chance of each unit to join a step."""
        return self.batch_size / self.n_units

    @property
    def epochs(self) -> float:
        """Expected number of times each unit is seen."""
        return self.steps * self.sampling_probability

    def facts(self) -> dict[str, str]:
        """Its figures, for people: what `taciturn plan` prints.

        Examples:
            >>> model.plan(n_units=10_000, target_epsilon="unlimited").facts()["guarantee"]
            'none (target_epsilon is unlimited)'
        """
        rows = {
            "units (public)": str(self.n_units),
            "batch (expected units per step)": str(self.batch_size),
            "sampling probability": f"{self.sampling_probability:.6g}",
            "steps": str(self.steps),
            "epochs": f"{self.epochs:.3g}",
        }
        if self.privacy is None:
            rows["guarantee"] = "none (target_epsilon is unlimited)"
        else:
            rows["noise multiplier"] = f"{self.privacy.noise_multiplier:.6g}"
            rows["clip norm"] = f"{self.privacy.l2_clip_norm:g}"
            rows["epsilon"] = f"{self.privacy.epsilon:.6g}"
            rows["delta"] = f"{self.privacy.delta:g}"
        if self.beta is not None:
            rows["objective"] = f"preferences (DPO), beta {self.beta:g}"
        return {**rows, "learning rate": f"{self.learning_rate:g}"}

    def __str__(self) -> str:
        """Its figures, what it is worth and why it is so, each in a line."""
        lines = [f"{name}: {value}" for name, value in self.facts().items()]
        if self.worth is not None:
            lines.append(f"worth: {self.worth.text}")
        return "\n".join([*lines, *(f"method: {reason}" for reason in self.reasons)])

    __repr__ = __str__

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
        return _remaining(self.noise_multiplier, self.batch_size, self.steps)


class TimeChoice(BaseModel):
    """Plan for another amount of time.

    Attributes:
        times: the limit on the units seen, in multiples of the plan's.
        units: batch x steps; below the limit where more would leave no less noise.
        remaining_noise: noise on the mean of all steps' gradients, in clip norms.
        share: expected share of an ordinary fit's gain; None where that is not known.
    """

    model_config = ConfigDict(frozen=True)

    times: float
    batch_size: int
    steps: int
    units: int
    noise_multiplier: float
    remaining_noise: float
    share: float | None


def make_plan(spec: FitSpec, facts: PublicFacts, speed: Speed | None = None) -> TrainingPlan:
    """Resolve every default and calibrate the noise.

    Args:
        speed: what max_minutes is reckoned with; needed with that, and not used without.

    Raises:
        PrivacyParameterError: epsilon, delta or batch size cannot give a guarantee for n_units.
        SpecError: a bound that depends on the model, such as max_tokens.
    """
    check_target(spec)
    delta = _delta(spec, facts.n_units)
    _check_batch(spec, facts)
    if spec.max_minutes is None:
        speed = None
    most, why_so_long = _most_units(spec, facts, speed)
    batch_size, steps = defaults.batch_and_steps(spec, facts, _noise_of(spec, facts, delta), most)
    adapter = adapter_plan(spec, facts)
    choice, why = defaults.adapter_choice(spec, facts)
    privacy = _privacy(spec, facts.n_units, delta, batch_size, steps)
    noise = privacy.noise_multiplier / batch_size if privacy else None
    tuned = defaults.tuning(choice, facts, steps, noise)
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
        objective=spec.objective,
        beta=spec.beta if spec.objective == "dpo" else None,
        reasons=(
            *why,
            *why_so_long,
            *_why_such_steps(spec, facts.n_units, batch_size, steps),
            *_of_public_text(spec),
            *_of_preferences(spec),
        ),
        base_parameters=facts.base_parameters,
        seconds_per_unit=None if speed is None else speed.seconds_per_unit,
    )


def other_times(spec: FitSpec, facts: PublicFacts, plan: TrainingPlan) -> tuple[TimeChoice, ...]:
    """Plans for half, twice and four times the plan's time, beside the plan itself.

    Each is the plan that such a limit on the units seen gives. Steps that the spec gives are kept,
    or else its batch. Nothing without privacy.
    """
    if plan.privacy is None:
        return ()
    batch_size = spec.batch_size if spec.steps is None else None
    open_spec = spec.model_copy(update={"batch_size": batch_size, "epochs": None})
    noise = _noise_of(open_spec, facts, plan.privacy.delta)
    choices = [_time_choice(1, plan.batch_size, plan.steps, plan.privacy.noise_multiplier, plan)]
    for times in (0.5, 2, 4):
        most = times * plan.units_seen
        with suppress(PrivacyParameterError):  # of which no noise makes a guarantee
            batch, steps = defaults.batch_and_steps(open_spec, facts, noise, most)
            choices.append(_time_choice(times, batch, steps, noise(batch, steps), plan))
    return tuple(sorted(choices, key=lambda choice: choice.times))


def _time_choice(
    times: float, batch: int, steps: int, noise: float, plan: TrainingPlan
) -> TimeChoice:
    noise_left = _remaining(noise, batch, steps)
    worth_is_known = plan.worth is not None and plan.worth.low is not None
    return TimeChoice(
        times=times,
        batch_size=batch,
        steps=steps,
        units=batch * steps,
        noise_multiplier=noise,
        remaining_noise=noise_left,
        share=expected_share(noise_left, plan.base_parameters or 0) if worth_is_known else None,
    )


def _remaining(noise: float, batch_size: int, steps: int) -> float:
    return noise / (batch_size * math.sqrt(steps))


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
    choices = {name: getattr(spec, name) for name in ("method", "seed", "max_tokens")}
    plan = make_plan(FitSpec(target_epsilon="unlimited", **choices), facts)
    steps = min(plan.steps, _MOST_PUBLIC_STEPS)
    return plan.model_copy(update={"adapter": adapter, "steps": steps})


def with_rate(plan: TrainingPlan, factor: float) -> TrainingPlan:
    """The plan with the learning rate that was found on public text."""
    rate = plan.learning_rate * factor
    reason = (
        f"learning rate {rate:.3g}, {factor:g} times the default: the best of 0.25, 0.5, 1 and 2 "
        "times it in simulated private fits on the public text"
    )
    reasons = (*(text for text in plan.reasons if text != _RATE_IS_OPEN), reason)
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


def _of_preferences(spec: FitSpec) -> tuple[str, ...]:
    if spec.objective == "sft":
        return ()
    return (
        f"preferences (DPO) with beta={spec.beta:g}: each pair of answers is compared with the "
        "base, which is the model with its adapters off. A unit's gradient is that of its pairs",
    )


def check_target(spec: FitSpec) -> None:
    """Refuse a job that does not say how private it is; there is no default for that."""
    if spec.target_epsilon is None:
        raise PrivacyParameterError(
            'target_epsilon is not set; choose for example target_epsilon=3, or "unlimited" for '
            "no privacy at all"
        )


def adapter_plan(spec: FitSpec, facts: PublicFacts) -> AdapterPlan:
    """Parameters that will be trained; does not depend on the data."""
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


def record_tokens(spec: DataSpec, context_length: int) -> int:
    """Tokens of the longest record: `max_tokens`, or of a pair twice as many."""
    return max_tokens(spec, context_length) * (2 if spec.pairs else 1)


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
    assert plan.privacy is not None
    sigma = _calibrated(epsilon, plan.privacy.delta, batch_size / plan.n_units, steps)
    return Alternative(epsilon, epochs, batch_size, steps, sigma)


def _check_batch(spec: FitSpec, facts: PublicFacts) -> None:
    if spec.batch_size is not None and spec.batch_size > facts.n_units:
        raise PrivacyParameterError(
            f"batch_size={spec.batch_size} exceeds the data's n_units={facts.n_units}; "
            f"choose at most {facts.n_units}"
        )


def _most_units(
    spec: FitSpec, facts: PublicFacts, speed: Speed | None
) -> tuple[float | None, tuple[str, ...]]:
    """Number of units that max_minutes has time for, and that in words; None without it."""
    if spec.max_minutes is None:
        return None, ()
    if speed is None:
        raise SpecError(
            f"max_minutes={spec.max_minutes:g}: how long a unit takes is not known here; give "
            "batch_size and steps instead"
        )
    units = 60 * spec.max_minutes / speed.seconds_per_unit
    least = spec.batch_size or spec.steps or min(defaults.FEWEST_STEPS, facts.n_units)
    if units < least:
        raise SpecError(
            f"max_minutes={spec.max_minutes:g} is time for {units:.3g} units, and this fit sees "
            f"{least} at least ({_pace(speed)}); give at least "
            f"max_minutes={_rounded_up(least * speed.seconds_per_unit / 60):g}"
        )
    return units, (
        f"max_minutes={spec.max_minutes:g}: time for about {units:,.0f} units, {_pace(speed)}. How "
        "long your units are is private and decides no plan: longer ones take longer",
    )


def _pace(speed: Speed) -> str:
    return f"{speed.seconds_per_unit:.2g} s each, {speed.basis}"


def _rounded_up(minutes: float) -> float:
    """Round upwards to two significant digits."""
    scale = 10.0 ** (math.floor(math.log10(minutes)) - 1)
    return float(f"{math.ceil(minutes / scale) * scale:.2g}")


def _why_such_steps(spec: FitSpec, n_units: int, batch: int, steps: int) -> tuple[str, ...]:
    """Reasons for this batch and so many steps of a private fit, where both were left open."""
    if not spec.private or (spec.batch_size or spec.steps or spec.epochs) is not None:
        return ()
    whole = "every unit in every step" if batch == n_units else f"{batch} units in each"
    if steps <= defaults.FEWEST_STEPS:
        why = "the fewest that learn: for the same work, few steps of many units have least noise"
    else:
        why = "as many as leave the noise of each step below what the largest stable step bears"
    return (f"{steps} steps, {whole}: {why}",)


def _delta(spec: FitSpec, n_units: int) -> float | None:
    """Return delta, checked against the number of units; None without privacy."""
    if not spec.private:
        return None
    # Not at once: who only reads plans, as clients of a gateway do, needs no accountant.
    from taciturn.accounting.calibrate import check_delta, default_delta

    delta = default_delta(n_units) if spec.delta is None else spec.delta
    check_delta(delta, n_units)
    return delta


def _noise_of(
    spec: FitSpec, facts: PublicFacts, delta: float | None
) -> Callable[[int, int], float]:
    """The noise multiplier of a batch size and a number of steps, for the spec's epsilon."""
    target = spec.target_epsilon

    def noise(batch_size: int, steps: int) -> float:
        assert isinstance(target, float), "fits without privacy have no noise"
        assert delta is not None
        return _calibrated(target, delta, batch_size / facts.n_units, steps)

    return noise


@lru_cache(maxsize=512)
def _calibrated(epsilon: float, delta: float, probability: float, steps: int) -> float:
    from taciturn.accounting.calibrate import noise_multiplier

    return noise_multiplier(
        target_epsilon=epsilon, delta=delta, sampling_probability=probability, steps=steps
    )


def _privacy(
    spec: FitSpec, n_units: int, delta: float | None, batch_size: int, steps: int
) -> PrivacyPlan | None:
    if delta is None:
        return None
    from taciturn.accounting.compose import epsilon as epsilon_of
    from taciturn.accounting.events import dpsgd_event

    assert isinstance(spec.target_epsilon, float)
    probability = batch_size / n_units
    sigma = _calibrated(spec.target_epsilon, delta, probability, steps)
    event = dpsgd_event(sampling_probability=probability, noise_multiplier=sigma, steps=steps)
    return PrivacyPlan(
        epsilon=epsilon_of(event, delta),
        delta=delta,
        noise_multiplier=sigma,
        l2_clip_norm=spec.l2_clip_norm or defaults.L2_CLIP_NORM,
    )
