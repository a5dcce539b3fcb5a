"""The Gaussian mechanism: noise in proportion to the sensitivity that travels with the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import NORMAL_CHUNK, SecureStream
from taciturn.engine.privacy.types import BoundedSum, PrivateGradient

# 2^-20 of the noise: far above float64's gaps, far below anything that training can feel.
_GRID_BITS = 20


def add_noise(
    total: BoundedSum, noise_multiplier: float, divisor: float, stream: SecureStream
) -> PrivateGradient:
    """(total + N(0, (noise_multiplier * l2_sensitivity)^2 I)) / divisor.

    Guarantee: the Gaussian mechanism with the given noise multiplier (Dwork and Roth 2014,
    appendix A). `divisor` must be a public constant: the expected batch size, never the realised
    one (PITFALLS 5). Noise is float64 and the noised sum is rounded to a power-of-two grid, so
    that the low-order bits of floating-point sums, which give away the addends (Mironov 2012), are
    not released.
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier={noise_multiplier} must be positive and finite")
    if not divisor > 0:
        raise ValueError(f"divisor={divisor} must be positive")
    std = noise_multiplier * total.l2_sensitivity
    step = grid_step(std)
    values = {
        name: _release(value, std, step, divisor, stream) for name, value in total.values.items()
    }
    return PrivateGradient(values, std / divisor)


def on_every_rank(
    own: PrivateGradient, parameters: Mapping[str, Tensor], ranks: Ranks
) -> PrivateGradient:
    """All rows of the gradient, from the ranks that added noise to them; every rank calls it.

    Guarantee: only rows that have their noise are sent, so this is post-processing. Every rank gets
    the same bits. A parameter that is itself sharded keeps the rows that this rank owns.
    """
    replicated = {
        name: own.values[name]
        for name, value in parameters.items()
        if not isinstance(value, DTensor)
    }
    shapes = {name: value.shape for name, value in parameters.items()}
    whole = ranks.whole(replicated, shapes)
    return PrivateGradient({**own.values, **whole}, own.noise_std)


def grid_step(std: float) -> float:
    """Spacing of the grid on which sums with noise of `std` are released: a power of two."""
    return 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)


def _release(
    value: Tensor, std: float, step: float, divisor: float, stream: SecureStream
) -> Tensor:
    out = torch.empty(value.shape, dtype=torch.float32, device=value.device)
    parts = zip(
        value.reshape(-1).split(NORMAL_CHUNK), out.view(-1).split(NORMAL_CHUNK), strict=True
    )
    for part, released in parts:
        noised = stream.normal(part.shape).to(value.device).mul_(std).add_(part)
        released.copy_(noised.div_(step).round_().mul_(step).div_(divisor))
    return out
