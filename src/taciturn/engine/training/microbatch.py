"""Size of a microbatch: as the spec says, or as much as the device has room for.

It follows from public things alone: shapes, settings, the device and what is free on it before the
run. It is never changed by what the run then meets. A resumed run may get another size, if other
memory is free; that does no harm, since each unit's share of a sum is bounded in every shape.
"""

from __future__ import annotations

import torch

from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.training.batch import widths
from taciturn.engine.training.memory import (
    STATE_BYTES,
    available_bytes,
    free_tokens,
    gradient_units,
    microbatch_peak,
    random_batch,
    total_bytes,
    trained_numbers,
)
from taciturn.engine.training.processes import together
from taciturn.spec import FitSpec

_ON_CPU = 2048
_USEFUL = 2048  # tokens from which matrix products are as fast as they become
_MOST = 32_768, 8192  # where starting kernels takes most of the time, and elsewhere
# Part of a GPU's memory that is left: fragments between blocks, libraries, the next microbatch.
_RESERVE = 0.1
_SUM_BYTES = 8  # of a microbatch, beside the step's


def microbatch_tokens(
    loss: CausalLmLoss, spec: FitSpec, vocabulary: int, longest: int, ranks: Ranks = ALONE
) -> int:
    """Tokens of a microbatch of a run: the spec's, 2,048, or on a GPU as many as fit.

    Every process of a job calls it, and all get the same. A sharded model's are 2,048: measuring
    takes forward passes, and one that lacks memory would leave the other processes waiting.

    Args:
        longest: tokens of the longest record that can occur.
    """
    if spec.microbatch_tokens is not None:
        return spec.microbatch_tokens
    device = next(loss.parameters()).device
    if device.type != "cuda" or spec.sharding == "full":
        return _ON_CPU
    with together(ranks):
        own = fitting_tokens(loss, spec, vocabulary, longest)
    return max(1, int(min(row[0] for row in ranks.numbers([own]))))


def wants_checkpointing(loss: CausalLmLoss, spec: FitSpec, vocabulary: int, longest: int) -> bool:
    """Return whether a GPU has room for too little, unless activations are recomputed.

    Too little is less than the spec's microbatch, or 2,048 tokens, or the longest record; where
    gradients of one unit alone may be kept at once, less than the longest record.
    """
    useful = longest if gradient_units(loss) == 1 else (spec.microbatch_tokens or _USEFUL)
    return fitting_tokens(loss, spec, vocabulary, longest) < max(useful, longest)


def fitting_tokens(loss: CausalLmLoss, spec: FitSpec, vocabulary: int, longest: int) -> int:
    """Tokens of the largest microbatch that is useful, and for which a GPU has room; 0: for none.

    8,192 are useful, and in small models, which compute faster than they are told to, up to 32,768.

    Two pairs of small microbatches of public random tokens are computed and their memory counted:
    of the longest records, for the bytes of a token, and of the shortest, for those of a unit. Both
    grow in a straight line. Most memory is taken where a microbatch has as many units and as many
    tokens as it may.
    """
    narrowest = widths(longest)[0]
    device, units = next(loss.parameters()).device, gradient_units(loss)
    room = available_bytes(device)
    assert room is not None
    room -= round(_RESERVE * total_bytes(device))
    room -= trained_numbers(loss) * (STATE_BYTES + _SUM_BYTES)
    try:
        if units == 1:
            return longest if _bytes(loss, spec, vocabulary, longest, 1) <= room else 0
        fixed, per_record = _growth(loss, spec, vocabulary, longest, units)
        fixed_of_short, per_unit = _growth(loss, spec, vocabulary, narrowest, units)
    except torch.OutOfMemoryError:
        return 0
    per_token = per_record / longest
    room -= round(max(fixed, fixed_of_short))
    tokens = most_tokens(room, per_token, per_unit - narrowest * per_token, units, narrowest)
    return min(tokens, max(_MOST[1], longest, min(_MOST[0], 2 * free_tokens(loss))))


def most_tokens(room: float, per_token: float, per_unit: float, units: int, narrowest: int) -> int:
    """Tokens that fit into `room` bytes, rounded down, so that a little more or less is the same.

    Args:
        per_unit: bytes of a unit beside those of its tokens.
        units: as many as may be, each of `narrowest` tokens at least.
    """
    per_token, per_unit = max(1.0, per_token), max(0.0, per_unit)
    tokens_of_few_units = room / (per_token + per_unit / narrowest)
    tokens_of_most_units = (room - units * per_unit) / per_token
    tokens = int(max(tokens_of_few_units, tokens_of_most_units))
    if tokens < 1:
        return 0
    step = max(1, (1 << (tokens.bit_length() - 1)) // 4)
    return tokens // step * step


def _growth(
    loss: CausalLmLoss, spec: FitSpec, vocabulary: int, width: int, units: int
) -> tuple[float, float]:
    """Bytes of a microbatch of records of `width` tokens: of none of them, and of each."""
    many = max(2, min(_USEFUL // width, units))
    few = many // 2
    small, large = (_bytes(loss, spec, vocabulary, width, count) for count in (few, many))
    slope = max(0.0, (large - small) / (many - few))
    return max(0.0, large - slope * many), slope


def _bytes(loss: CausalLmLoss, spec: FitSpec, vocabulary: int, width: int, records: int) -> int:
    batch = random_batch(vocabulary, records, width, next(loss.parameters()).device)
    return microbatch_peak(loss, batch, Form(spec.per_unit_gradients), private=spec.private)
