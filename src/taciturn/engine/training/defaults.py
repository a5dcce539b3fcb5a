"""The public defaults behind `method="auto"`: functions of the spec and public facts only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from taciturn.spec import FitSpec


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
class Tuning:
    """Optimiser settings that the user may leave open."""

    learning_rate: float
    l2_clip_norm: float
    warmup_steps: int
    beta1: float
    beta2: float
    weight_decay: float
    average_decay: float


AdapterChoice = tuple[Literal["lora", "full"], int | None, float | None, tuple[str, ...] | None]


def adapter_choice(spec: FitSpec, facts: PublicFacts) -> tuple[AdapterChoice, tuple[str, ...]]:
    """The method and adapter, and why, in words."""
    if spec.method == "full":
        return ("full", None, None, None), ("full fine-tuning, as asked",)
    rank = spec.r or (4 if spec.private else 16)
    alpha = spec.alpha or float(2 * rank)
    if spec.method == "lora":
        reason = f"LoRA of rank {rank}, as asked"
    elif spec.private:
        reason = (
            f"LoRA of rank {rank}: noise grows with the number of trained parameters, so few are "
            "trained"
        )
    else:
        reason = f"LoRA of rank {rank}: keeps the base model as it is and the adapter small"
    return ("lora", rank, alpha, spec.target_modules), (reason,)


def batch_size(spec: FitSpec, facts: PublicFacts) -> int:
    """Expected units per step: large under DP, where noise is shared by the whole batch."""
    if not spec.private:
        return min(facts.n_units, 32)
    return max(1, min(facts.n_units, max(256, facts.n_units // 8), 4096))


def steps(spec: FitSpec, facts: PublicFacts, batch: int) -> int:
    """Steps when neither epochs nor steps are given."""
    if not spec.private:
        return max(1, math.ceil(3 * facts.n_units / batch))
    return 60


def tuning(
    spec: FitSpec, facts: PublicFacts, method: str, batch: int, n_steps: int
) -> Tuning:
    """Learning rate, clip norm, schedule and averaging."""
    if spec.private:
        rate = 1e-2 if method == "lora" else 1e-3
        return Tuning(rate, 1.0, n_steps // 20, 0.9, 0.999, 0.0, 0.9)
    rate = 2e-3 if method == "lora" else 5e-4
    return Tuning(rate, 1.0, n_steps // 20, 0.9, 0.999, 0.01, 0.0)
