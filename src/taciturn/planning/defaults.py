"""The public defaults behind `method="auto"`: functions of the spec and public facts only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from taciturn.spec import FitSpec

L2_CLIP_NORM = 0.1
"""Far below the norm of any unit's gradient, so that all count alike and nothing needs tuning."""


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
    """Which parameters are trained.

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


def batch_size(spec: FitSpec, facts: PublicFacts) -> int:
    """Expected units per step: large under DP, where the whole batch shares the noise."""
    if not spec.private:
        return min(facts.n_units, 32)
    return max(1, min(facts.n_units, max(512, facts.n_units // 16), 2048))


def steps(spec: FitSpec, facts: PublicFacts, batch: int) -> int:
    """Steps when neither epochs nor steps are given."""
    if not spec.private:
        return max(1, math.ceil(3 * facts.n_units / batch))
    return 40


def tuning(choice: AdapterChoice, n_steps: int, noise: float | None) -> Tuning:
    """Learning rate and schedule.

    Without decay, most of the signal survives the noise: with gradients that are mostly noise, a
    step's signal grows with its rate and its damage with the rate squared, so equal steps are best.
    By the same sum the best rate is proportional to signal over noise, until curvature limits it.

    Args:
        choice: what is trained.
        n_steps: length of the run.
        noise: standard deviation of the noise on the mean gradient, in clip norms; None without DP.
    """
    if noise is None:
        rate = 2e-3 if choice.method == "lora" else 5e-4
        return Tuning(rate, n_steps // 20, True, 0.9, 0.999, 0.01, 0.0)
    if choice.fixed_a:
        steepest = 2e-2 * math.sqrt(32 / max(32, n_steps))
        return Tuning(min(3.3e-5 / noise, steepest), n_steps // 20, False, 0.9, 0.99, 0.0, 0.0)
    rate = 1e-2 if choice.method == "lora" else 2e-3
    return Tuning(rate, n_steps // 10, True, 0.9, 0.99, 0.0, 0.0)
