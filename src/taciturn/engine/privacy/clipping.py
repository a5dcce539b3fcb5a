"""Clip each unit's gradient to a norm and sum: the only place where sensitivity is made.

Shapes: U units, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from taciturn.engine.privacy import kernels
from taciturn.engine.privacy.factors import FactoredGradients, squared_norms
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.types import BoundedSum, ClipCounts, PerUnitGradients, Tally
from taciturn.errors import GuaranteeError

Values: TypeAlias = Mapping[str, Tensor | FactoredGradients]

STATISTICS = "statistics"
"""Name of the one value in a sum of statistics."""

# Gradient entries held in float64 at once: so few stay in a processor's cache.
_CHUNK = 1 << 18
# The same on another device that has no kernels: few launches, in 128 MiB.
_DEVICE_CHUNK = 1 << 24
# Every unit is clipped this much shorter than the clip norm, for what rounds in float64:
# - sums. With u = 2^-53, adding up b vectors of length at most C is off by at most b^2 u C in l2
#   norm (Higham 2002, section 4.2), and the sum without a unit by as much again: 2 b^2 u C, at most
#   6.2e-5 C for MOST_UNITS.
# - norms, by less than _NORM_ERROR.
# A unit's gradient itself does not depend on the others (`training/batch.py`, `verification.py`).
ROUNDING = 1e-4
MOST_UNITS = 1 << 19
# Relative error of a norm up to which Gram matrices of factors may cancel.
_NORM_ERROR = 1e-6


def unit_norms(gradients: PerUnitGradients) -> Tensor:
    """l2 norm of each unit's whole gradient, over all parameters together; float64 [U].

    Accumulated in float64 whatever the gradients' type: bf16 sums under-estimate. Relative error at
    most 1e-6; infinite if the rows of a unit's factors cancel so far that this cannot be had.
    """
    norms_U = _norms(gradients.values, gradients.losses_U)
    return norms_U.masked_fill(_cancelled(gradients.values, norms_U), math.inf)


def _cancelled(values: Values, norms_U: Tensor) -> Tensor:
    """Units whose factors cancel so far that their norms have not digits enough; bool [U]."""
    doubt_U = torch.zeros_like(norms_U)
    for value in _by_form(values)[1].values():
        squares_U = value.uncancelled_norms().to(norms_U.device).square_()
        doubt_U += squares_U * value.relative_error
    # NaN compares as false: such a unit is dropped anyway.
    return doubt_U > 2 * _NORM_ERROR * norms_U.square()


def _norms(values: Values, losses_U: Tensor) -> Tensor:
    squares_U = torch.zeros(
        len(losses_U), dtype=torch.float64, device=_exact_device(losses_U.device)
    )
    instantiated, factored = _by_form(values)
    for squares in squared_norms(list(factored.values())):
        squares_U += squares.to(squares_U.device)
    reduced, rest = _by_kernel(instantiated)
    for some in reduced.values():
        squares_U += kernels.squared_norms(list(some.values())).to(squares_U.device)
    for part_UP, _ in _exact_columns(list(rest.values())):
        squares_U += part_UP.square_().sum(1).to(squares_U.device)
    return squares_U.sqrt_()


def clip_and_sum(
    gradients: PerUnitGradients, l2_clip_norm: float, total: BoundedSum | None = None
) -> BoundedSum:
    """Scale each unit's gradient to norm at most `l2_clip_norm` and add them up.

    Guarantee: adding or removing one unit moves the sum by at most `l2_clip_norm` in l2 norm, what
    rounding does to the others included (Abadi et al. 2016, algorithm 1), for gradients of any
    floating type, either form and up to MOST_UNITS units, provided each unit's gradient is the same
    with and without it. A unit with a NaN or infinite gradient contributes zero and is counted
    privately. So does a unit whose factors cancel, but it is outstanding until `settle` adds it.

    The host does not wait for the device.

    Args:
        total: a sum over other units, to which these are added; its memory is re-used. As
            `merge_disjoint`, and without memory for another sum.
    """
    _check_clip_norm(l2_clip_norm)
    values = gradients.values
    if total is not None:
        _check_addends(total, l2_clip_norm, values)
    norms_U = _norms(values, gradients.losses_U)
    outstanding_U, finite_U = _cancelled(values, norms_U), torch.isfinite(norms_U)
    left_out_U = outstanding_U | ~finite_U
    bound = l2_clip_norm / (1 + ROUNDING)
    # Filled, not chosen with `where`, which would send the zero to the device and wait for that.
    scale_U = (bound / norms_U).clamp_(max=1.0).masked_fill_(left_out_U, 0.0)
    sums = _weighted_sums(values, scale_U, {} if total is None else total.values)
    losses_U = gradients.losses_U.to(norms_U)
    notes = (
        (norms_U > l2_clip_norm) & ~left_out_U,
        left_out_U & ~outstanding_U,
        losses_U.masked_fill(left_out_U, 0.0),
        norms_U.masked_fill(left_out_U, 0.0),
        outstanding_U,
    )
    notes_5U = torch.stack([each_U.double() for each_U in notes])
    real_units = len(norms_U) - gradients.n_fillers
    tally = Tally(unread=(notes_5U[:, :real_units],))
    return BoundedSum(sums, l2_clip_norm, tally if total is None else total.tally + tally)


def settle(
    total: BoundedSum, again: Callable[[list[list[int]]], Iterable[PerUnitGradients]]
) -> BoundedSum:
    """The sum with the units that `clip_and_sum` left outstanding; `total`'s memory is re-used.

    Waits for the device, once: which units these are is read together with all counts.

    Guarantee: as `clip_and_sum`, over all units of `total`. An outstanding unit adds nothing to
    `total`; here it is added once, clipped by the norm of its own instantiated gradient, whose
    values have no doubt about them. Whether a unit is outstanding follows from its own rows, and
    alone in its batch it is computed from nothing else.

    Args:
        again: gives, for the outstanding units of each microbatch of `total`, in order, the
            instantiated gradients of each as a batch of its own. It is called in any case.

    Raises:
        GuaranteeError: what `again` gives are not as many gradients, of one unit each.
    """
    counts, outstanding = total.tally.read()
    total = BoundedSum(total.values, total.l2_sensitivity, Tally(counts))
    missing = sum(map(len, outstanding))
    for gradients in again(outstanding):
        missing -= len(gradients.losses_U)
        if missing < 0 or len(gradients.losses_U) != 1 or _by_form(gradients.values)[1]:
            raise GuaranteeError(
                "units that were left out of a sum have to be computed again one by one, each "
                "once and with instantiated gradients"
            )
        total = merge_disjoint(total, clip_and_sum(gradients, total.l2_sensitivity))
        del gradients  # its memory is free before the next unit's are made
    if missing:
        raise GuaranteeError(f"{missing} units that were left out of a sum were not computed again")
    return total


def empty_sum(parameters: Mapping[str, Tensor], l2_clip_norm: float) -> BoundedSum:
    """The sum over no unit: zeros in the shape of `parameters`."""
    _check_clip_norm(l2_clip_norm)
    zeros = {
        name: torch.zeros(value.shape, dtype=torch.float64, device=_exact_device(value.device))
        for name, value in parameters.items()
    }
    return BoundedSum(zeros, l2_clip_norm)


def merge_disjoint(total: BoundedSum, part: BoundedSum) -> BoundedSum:
    """The sum over the units of both. They must not share a unit; `total`'s memory is re-used.

    Guarantee: one unit is in one of the two only, so the sensitivity stays what it was. It holds
    because a microbatch has whole units and a logical step draws each unit at most once.
    """
    _check_addends(total, part.l2_sensitivity, part.values)
    # All at once: a GPU is told of them in a few launches.
    torch._foreach_add_(list(total.values.values()), [part.values[name] for name in total.values])
    return BoundedSum(total.values, total.l2_sensitivity, total.tally + part.tally)


def _check_addends(total: BoundedSum, l2_sensitivity: float, values: Mapping[str, object]) -> None:
    if total.l2_sensitivity != l2_sensitivity:
        raise ValueError(
            f"sensitivities {total.l2_sensitivity} and {l2_sensitivity} differ; "
            "clip all microbatches of a step to one norm"
        )
    if total.values.keys() != values.keys():
        raise ValueError("the two sums are over different parameters")


def sum_over_ranks(part: BoundedSum, ranks: Ranks) -> BoundedSum:
    """This rank's own rows of the sum over the units of all ranks; every rank calls it.

    Guarantee: one unit is in the part of one rank only (`Ranks.deal`), so it moves the whole sum,
    and all the more any rows of it, by at most the sensitivity that each part has. The rows of all
    ranks together are the whole sum, each row once.

    Raises:
        GuaranteeError: ranks clipped to different norms.
    """
    own = part.counts
    sent = [own.n_units, own.n_clipped, own.n_non_finite, own.loss_sum, own.norm_sum]
    everybody = ranks.numbers([part.l2_sensitivity, *sent])
    if any(row[0] != part.l2_sensitivity for row in everybody):
        raise GuaranteeError(
            f"processes clip to different norms: {sorted({row[0] for row in everybody})}; start "
            "all of them with the same settings"
        )
    counts = ClipCounts()
    for _, units, clipped, non_finite, losses, norms in everybody:
        counts += ClipCounts(int(units), int(clipped), int(non_finite), losses, norms)
    return BoundedSum(ranks.sum_rows(part.values), part.l2_sensitivity, Tally(counts))


def _by_form(values: Values) -> tuple[dict[str, Tensor], dict[str, FactoredGradients]]:
    """Those that are instantiated, and those that are kept as factors."""
    instantiated, factored = {}, {}
    for name, value in values.items():
        if isinstance(value, FactoredGradients):
            factored[name] = value
        else:
            instantiated[name] = value
    return instantiated, factored


def _weighted_sums(
    values: Values, scale_U: Tensor, totals: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Parameter name -> sum over u of scale[u] * gradient[u], in the order of the gradients.

    Args:
        totals: what the sums are added to, in place; of all names or of none.
    """
    instantiated, factored = _by_form(values)
    reduced, rest = _by_kernel(instantiated)
    sums: dict[str, Tensor] = {}
    for device, some in reduced.items():
        parts = kernels.weighted_sums(list(some.values()), scale_U.to(device))
        sums |= {name: part.to(scale_U) for name, part in zip(some, parts, strict=True)}
    if totals and sums:
        # All at once: a GPU is told of them in a few launches.
        torch._foreach_add_([totals[name] for name in sums], list(sums.values()))
    sums |= {
        name: value.weighted_sum(scale_U, totals.get(name)) for name, value in factored.items()
    }
    sums |= totals or {name: scale_U.new_empty(value.shape[1:]) for name, value in rest.items()}
    _add_columns(rest, scale_U, sums, beta=1.0 if totals else 0.0)
    return {name: sums[name] for name in values}


def _by_kernel(
    values: Mapping[str, Tensor],
) -> tuple[dict[torch.device, dict[str, Tensor]], dict[str, Tensor]]:
    """Those that a device's kernels add up, and those that torch's operations do."""
    reduced: dict[torch.device, dict[str, Tensor]] = {}
    rest = {}
    for name, value in values.items():
        if kernels.reduces(value):
            reduced.setdefault(value.device, {})[name] = value
        else:
            rest[name] = value
    return reduced, rest


def _add_columns(
    values: Mapping[str, Tensor], scale_U: Tensor, sums: Mapping[str, Tensor], beta: float
) -> None:
    """Make sums beta * sum + sum over u of scale[u] * value[u], those of the same names.

    A unit is added at most once to an entry, which is what ROUNDING counts. With a beta of 0
    nothing that was in a sum plays a part, even NaN.
    """
    flat = [sums[name].view(-1) for name in values]
    dropped_U1 = (scale_U == 0).unsqueeze(1)
    # Elsewhere than on the CPU, a look at the scales would wait for the device.
    may_drop = scale_U.device.type != "cpu" or not scale_U.numpy().all()
    for part_UP, places in _exact_columns(list(values.values())):
        if may_drop:  # zero times NaN is NaN: a scale of zero alone would not keep it out
            part_UP.masked_fill_(dropped_U1, 0.0)
        parts = part_UP.T.split([len(columns) for _, columns in places])
        for (value, columns), part_XU in zip(places, parts, strict=True):
            flat[value][columns.start : columns.stop].addmv_(part_XU, scale_U, beta=beta)


Places: TypeAlias = list[tuple[int, range]]
"""What columns are side by side: of which value, and where in it."""


def _exact_columns(values: Sequence[Tensor]) -> Iterator[tuple[Tensor, Places]]:
    """The gradients [U, ...] side by side, copied to float64 some columns at a time: [U, columns].

    Most parameters are small, so that several of them make up one copy. All are made in the same
    memory, which stays in the processor's cache: each is to be used up before the next.
    """
    sizes = [math.prod(value.shape[1:]) for value in values]
    if not sum(sizes):
        return
    device = _exact_device(values[0].device)
    units = len(values[0])
    most = (_CHUNK if device.type == "cpu" else _DEVICE_CHUNK) // max(1, units)
    size = min(max(1, most), sum(sizes))
    copy_UP = torch.empty(units, size, dtype=torch.float64, device=device)
    places: Places = []
    filled = 0
    for index, (value, columns) in enumerate(zip(values, sizes, strict=True)):
        flat_UP = value.reshape(units, columns)
        start = 0
        while start < columns:
            stop = min(columns, start + size - filled)
            end = filled + stop - start
            copy_UP[:, filled:end].copy_(flat_UP[:, start:stop])
            places.append((index, range(start, stop)))
            start, filled = stop, end
            if filled == size:
                yield copy_UP, places
                places, filled = [], 0
    if places:
        yield copy_UP[:, :filled], places


def _exact_device(device: torch.device) -> torch.device:
    # Apple's GPUs have no float64: there, sums are kept on the CPU.
    return torch.device("cpu") if device.type == "mps" else device


def _check_clip_norm(l2_clip_norm: float) -> None:
    if not (l2_clip_norm > 0 and math.isfinite(l2_clip_norm)):
        raise ValueError(f"l2_clip_norm={l2_clip_norm} must be positive and finite")


def clip_and_sum_statistics(values_UK: Tensor, l2_clip_norm: float) -> BoundedSum:
    """Scale each unit's row of K figures to norm at most `l2_clip_norm` and add them up.

    Guarantee: as `clip_and_sum`. A row with a NaN or infinite figure contributes zero.
    """
    _check_clip_norm(l2_clip_norm)
    rows_UK = values_UK.to(device=_exact_device(values_UK.device), dtype=torch.float64)
    norms_U = rows_UK.square().sum(1).sqrt()
    finite_U = torch.isfinite(norms_U)
    scale_U = torch.where(finite_U, (l2_clip_norm / norms_U).clamp(max=1.0), 0.0)
    # Zero times NaN is NaN: a scale of zero alone would not keep such a row out.
    kept_UK = torch.where(finite_U.unsqueeze(1), rows_UK, 0.0)
    counts = ClipCounts(
        n_units=len(norms_U),
        n_clipped=int((norms_U[finite_U] > l2_clip_norm).sum()),
        n_non_finite=int((~finite_U).sum()),
    )
    return BoundedSum({STATISTICS: scale_U @ kept_UK}, l2_clip_norm, Tally(counts))
