"""The Gaussian mechanism: noise in proportion to the sensitivity that travels with the sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import NORMAL_CHUNK, SecureStream
from taciturn.engine.privacy.types import BoundedSum, PrivateGradient

# 2^-20 of the noise: far above float64's gaps, far below anything that training can feel.
_GRID_BITS = 20
# Streams that share the noise of a large sum. A constant: what a stream yields must not depend on
# how many threads a machine has.
_LANES = 8

_Part = tuple[Tensor, Tensor]
"""Some values of the sum, and where they go once they have their noise."""


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
    released = {
        name: torch.empty(value.shape, dtype=torch.float32, device=value.device)
        for name, value in total.values.items()
    }
    parts = [part for name, out in released.items() for part in _parts(total.values[name], out)]
    _release(parts, std, divisor, stream)
    return PrivateGradient(released, std / divisor)


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


def _parts(value: Tensor, out: Tensor) -> Iterator[_Part]:
    """Both cut in the same places."""
    flat = (value.reshape(-1).split(NORMAL_CHUNK), out.view(-1).split(NORMAL_CHUNK))
    return zip(*flat, strict=True)


def _release(parts: Sequence[_Part], std: float, divisor: float, stream: SecureStream) -> None:
    """Each part with noise of its own. Many parts are dealt to lanes, which threads work off."""
    if len(parts) < 2 * _LANES:
        _release_lane(parts, std, divisor, stream)
        return
    lanes = [parts[first::_LANES] for first in range(_LANES)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        streams = stream.children(_LANES)
        done = pool.map(_release_lane, lanes, repeat(std), repeat(divisor), streams)
        list(done)  # raises what a lane has raised


def _release_lane(parts: Sequence[_Part], std: float, divisor: float, stream: SecureStream) -> None:
    step = grid_step(std)
    for part, released in parts:
        noised = stream.normal(part.shape).to(part.device).mul_(std).add_(part)
        released.copy_(noised.div_(step).round_().mul_(step).div_(divisor))
