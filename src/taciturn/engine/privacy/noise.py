"""The Gaussian mechanism: noise in proportion to the sensitivity that travels with the sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taciturn.engine.privacy.rng import SecureStream
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
        name: _release(value, std, step, stream).div_(divisor).to(torch.float32)
        for name, value in total.values.items()
    }
    return PrivateGradient(values, std / divisor)


def grid_step(std: float) -> float:
    """Spacing of the grid on which sums with noise of `std` are released: a power of two."""
    return 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)


def _release(value: Tensor, std: float, step: float, stream: SecureStream) -> Tensor:
    noise = stream.normal(value.shape).to(value.device)
    return (value + noise.mul_(std)).div_(step).round_().mul_(step)
