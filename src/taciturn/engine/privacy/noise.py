"""The Gaussian mechanism: noise in proportion to the sensitivity that travels with the sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import DEVICE_CHUNK, NORMAL_CHUNK, SecureStream
from taciturn.engine.privacy.types import BoundedSum, PrivateGradient

# 2^-20 of the noise: far above float64's gaps, far below anything that training can feel.
_GRID_BITS = 20

_Part = tuple[Tensor, Tensor]
"""Some values of the sum, and where they go once they have their noise."""


def add_noise(
    total: BoundedSum, noise_multiplier: float, divisor: float, stream: SecureStream
) -> PrivateGradient:
    """(total + N(0, (noise_multiplier * l2_sensitivity)^2 I)) / divisor.

    Guarantee: the Gaussian mechanism with the given noise multiplier (Dwork and Roth 2014,
    appendix A). `divisor` must be a public constant: the expected batch size, never the realised
    one, which is private and no noise hides. Noise is float64 and the noised sum is rounded to a
    power-of-two grid, so that the low-order bits of floating-point sums, which give away the
    addends (Mironov 2012), are not released.
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
    flat = ((total.values[name].reshape(-1), out.view(-1)) for name, out in released.items())
    for parts in _chunks(flat):
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


def _chunks(flat: Iterable[_Part]) -> Iterator[list[_Part]]:
    """All values in order, a chunk at a time: of many small parameters, or of a large one."""
    parts: list[_Part] = []
    room = 0
    for value, out in flat:
        chunk = NORMAL_CHUNK if value.device.type == "cpu" else DEVICE_CHUNK
        room = room if parts else chunk
        start = 0
        while start < len(value):
            stop = min(len(value), start + room)
            parts.append((value[start:stop], out[start:stop]))
            room, start = room - (stop - start), stop
            if room == 0:
                yield parts
                parts, room = [], chunk
    if parts:
        yield parts


def _release(parts: Sequence[_Part], std: float, divisor: float, stream: SecureStream) -> None:
    """Noise of its own for each value of each part.

    The grid's step is a power of two, so that dividing by it first changes no bit of the result.
    """
    step = grid_step(std)
    sizes = [len(value) for value, _ in parts]
    noised = stream.normal((sum(sizes),), parts[0][0].device).mul_(std / step)
    pieces = noised.split(sizes)
    torch._foreach_add_(pieces, [value for value, _ in parts], alpha=1 / step)
    noised.round_().div_(divisor / step)
    for (_, out), own in zip(parts, pieces, strict=True):
        out.copy_(own)
