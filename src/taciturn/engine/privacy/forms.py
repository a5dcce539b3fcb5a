"""Which form the per-unit gradients of a matrix take until the clipped sum is made.

Instantiated, unit u's gradient is a matrix [P, D], at the price of the ordinary weight gradient and
of reading it back for norm and sum. Kept as factors, it is the sum of g x^T over the unit's N rows
of output gradients g and activations x: its norm comes from two Gram matrices [N, N] (Goodfellow
2015; Li et al. 2022, section 4), and the clipped sum is one ordinary weight gradient with scaled
rows (book-keeping: Bu et al. 2023). Both are exact; only speed and memory differ.

Shapes: N rows of one unit, P output features, D input features.
"""

from __future__ import annotations

from enum import StrEnum

# Reading and writing one gradient entry costs as much as this many multiply-adds in fp32; measured
# on CPUs (bench/forms.py).
_ENTRY_IN_MULTIPLY_ADDS = 48
# What factors are multiplied in: float64, against the fp32 of instantiated gradients.
_FLOAT64 = 2


class Form(StrEnum):
    """How per-unit gradients are kept. A performance knob: it changes no guarantee."""

    AUTO = "auto"
    INSTANTIATE = "instantiate"
    FACTORS = "factors"


def keeps_factors(
    form: Form,
    out_features: int,
    in_features: int,
    rows: int,
    units: int,
    *,
    looked_up: bool = False,
) -> bool:
    """Whether a matrix [P, D] that meets `rows` rows of each of `units` units is kept as factors.

    Decided from shapes alone. A batch of one unit is never kept as factors under AUTO: its
    instantiated gradient is the ordinary gradient, and costs nothing extra.

    Args:
        looked_up: the matrix is a table of P rows, some of which are looked up: no products with P.
    """
    if form is not Form.AUTO:
        return form is Form.FACTORS
    multiplied = 0 if looked_up else out_features
    gram = _FLOAT64 * rows * rows * (multiplied + in_features)
    total = (_FLOAT64 - 1) * rows * multiplied * in_features
    return units > 1 and gram + total <= _ENTRY_IN_MULTIPLY_ADDS * out_features * in_features
