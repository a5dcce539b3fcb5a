"""Clip each unit's gradient to a norm and sum: the only place where sensitivity is made.

Shapes: U units, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taciturn.engine.privacy.types import BoundedSum, ClipCounts, PerUnitGradients

# Gradients held in float64 at once: bounds the memory beside them to 32 MiB, or one unit's.
_CHUNK = 1 << 22


def unit_norms(gradients: PerUnitGradients) -> Tensor:
    """l2 norm of each unit's whole gradient, over all parameters together; float64 [U].

    Accumulated in float64 whatever the gradients' type: bf16 sums under-estimate (PITFALLS 17).
    """
    losses_U = gradients.losses_U
    squares_U = torch.zeros(
        len(losses_U), dtype=torch.float64, device=_exact_device(losses_U.device)
    )
    for value in gradients.values.values():
        for units, part_UP in _exact_rows(value):
            squares_U[units] += part_UP.square_().sum(1)
    return squares_U.sqrt_()


def clip_and_sum(gradients: PerUnitGradients, l2_clip_norm: float) -> BoundedSum:
    """Scale each unit's gradient to norm at most `l2_clip_norm` and add them up.

    Guarantee: adding or removing one unit moves the sum by at most `l2_clip_norm` in l2 norm, up
    to float64 rounding (Abadi et al. 2016, algorithm 1). A unit with a NaN or infinite gradient
    contributes zero and is counted privately (PITFALLS 22).
    """
    _check_clip_norm(l2_clip_norm)
    norms_U = unit_norms(gradients)
    finite_U = torch.isfinite(norms_U)
    scale_U = torch.where(finite_U, (l2_clip_norm / norms_U).clamp_(max=1.0), 0.0)
    all_finite = bool(finite_U.all())
    # Zero times NaN is NaN: a scale of zero alone would not keep such a unit out.
    dropped_U = None if all_finite else ~finite_U
    sums = {
        name: _weighted_sum(value, scale_U, dropped_U) for name, value in gradients.values.items()
    }
    counts = ClipCounts(
        n_units=len(norms_U),
        n_clipped=int((norms_U[finite_U] > l2_clip_norm).sum()),
        n_non_finite=int((~finite_U).sum()),
        loss_sum=float(gradients.losses_U.to(finite_U.device)[finite_U].sum()),
        norm_sum=float(norms_U[finite_U].sum()),
    )
    return BoundedSum(sums, l2_clip_norm, counts)


def empty_sum(parameters: Mapping[str, Tensor], l2_clip_norm: float) -> BoundedSum:
    """The sum over no unit: zeros in the shape of `parameters` (PITFALLS 6)."""
    _check_clip_norm(l2_clip_norm)
    zeros = {
        name: torch.zeros(value.shape, dtype=torch.float64, device=_exact_device(value.device))
        for name, value in parameters.items()
    }
    return BoundedSum(zeros, l2_clip_norm, ClipCounts())


def merge_disjoint(total: BoundedSum, part: BoundedSum) -> BoundedSum:
    """The sum over the units of both. They must not share a unit; `total`'s memory is re-used.

    Guarantee: one unit is in one of the two only, so the sensitivity stays what it was. It holds
    because a microbatch has whole units and a logical step draws each unit at most once.
    """
    if total.l2_sensitivity != part.l2_sensitivity:
        raise ValueError(
            f"sensitivities {total.l2_sensitivity} and {part.l2_sensitivity} differ; "
            "clip all microbatches of a step to one norm"
        )
    if total.values.keys() != part.values.keys():
        raise ValueError("the two sums are over different parameters")
    merged = {name: value.add_(part.values[name]) for name, value in total.values.items()}
    return BoundedSum(merged, total.l2_sensitivity, total.counts + part.counts)


def _weighted_sum(value: Tensor, scale_U: Tensor, dropped_U: Tensor | None) -> Tensor:
    total_P = torch.zeros(math.prod(value.shape[1:]), dtype=torch.float64, device=scale_U.device)
    for units, part_UP in _exact_rows(value):
        if dropped_U is not None:
            part_UP[dropped_U[units]] = 0.0
        total_P += scale_U[units] @ part_UP
    return total_P.view(value.shape[1:])


def _exact_rows(value: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Copies of `value` [U, ...] in float64, some units at a time, as [units, P]."""
    n_values = math.prod(value.shape[1:])
    flat_UP = value.reshape(len(value), n_values)
    device, size = _exact_device(value.device), max(1, _CHUNK // max(1, n_values))
    for start in range(0, len(flat_UP), size):
        units = slice(start, start + size)
        yield units, flat_UP[units].to(device=device, dtype=torch.float64, copy=True)


def _exact_device(device: torch.device) -> torch.device:
    # Apple's GPUs have no float64: there, sums are kept on the CPU.
    return torch.device("cpu") if device.type == "mps" else device


def _check_clip_norm(l2_clip_norm: float) -> None:
    if not (l2_clip_norm > 0 and math.isfinite(l2_clip_norm)):
        raise ValueError(f"l2_clip_norm={l2_clip_norm} must be positive and finite")
