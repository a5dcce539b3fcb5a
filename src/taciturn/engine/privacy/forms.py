"""Which form the per-unit gradients of a matrix take until the clipped sum is made.

Instantiated, unit u's gradient is a matrix [P, D], at the price of the ordinary weight gradient and
of reading it back for norm and sum. Kept as factors, it is the sum of g x^T over the unit's N rows
of output gradients g and activations x: its norm comes from two Gram matrices [N, N] (Goodfellow
2015; Li et al. 2022, section 4), and the clipped sum is one ordinary weight gradient with scaled
rows (book-keeping: Bu et al. 2023). Both are exact; only speed and memory differ.

Shapes: N rows of one unit, P output features, D input features.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in the time of one multiply-add in float64, in which factors are.

    Attributes:
        multiply_adds: in the type that instantiated gradients are multiplied in.
        entry: how many float64 multiply-adds it takes to write and read one gradient entry.
    """

    multiply_adds: float
    entry: float


# Measured (bench/forms.py): an entry takes as long as 48 multiply-adds in fp32, or 24 in float64.
CPU = Rates(multiply_adds=2, entry=24)
# GPUs, from data sheets; none was measured, which `bench/forms.py --device cuda` does. An entry is
# written once and read twice, of 4 bytes, and half of it again in float64: about 16 bytes.
# - Data centre: A100 (compute capability 8.0), H100 and H200 (9.0), B200 (10.0). Tensor cores
#   multiply float64 as fast as other cores fp32, 10, 33, 33 and 20e12 times a second, and bf16 16
#   times as fast or faster. At 2, 3.3, 4.8 and 8e12 bytes a second an entry is 78, 160, 112 and 40
#   multiply-adds.
# - All others have 1/64 of fp32's rate in float64, and in bf16 twice that of fp32 or more. RTX
#   4090: 0.64e12 multiply-adds in float64 and 1e12 bytes a second: an entry is 10.
_WHOLE_FLOAT64 = ((8, 0), (9, 0), (10, 0))
_DATA_CENTRE, _DATA_CENTRE_HALF = Rates(1, 100), Rates(16, 100)
_CONSUMER, _CONSUMER_HALF = Rates(64, 10), Rates(128, 10)


@cache
def rates_of(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of a device for gradients of a type; from its kind alone, never measured."""
    if device.type != "cuda":
        return CPU
    half = dtype in (torch.bfloat16, torch.float16)
    if torch.cuda.get_device_capability(device) in _WHOLE_FLOAT64:
        return _DATA_CENTRE_HALF if half else _DATA_CENTRE
    return _CONSUMER_HALF if half else _CONSUMER


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
    rates: Rates = CPU,
) -> bool:
    """Whether a matrix [P, D] that meets `rows` rows of each of `units` units is kept as factors.

    Decided from shapes and the kind of device alone. A batch of one unit is never kept as factors
    under AUTO: its instantiated gradient is the ordinary gradient, and costs nothing extra.

    Args:
        looked_up: the matrix is a table of P rows, some of which are looked up: no products with P.
        rates: of the device, for the type of the gradients.
    """
    if form is not Form.AUTO:
        return form is Form.FACTORS
    multiplied = 0 if looked_up else out_features
    gram = rows * rows * (multiplied + in_features)
    total = rows * multiplied * in_features
    instantiated = total / rates.multiply_adds + rates.entry * out_features * in_features
    return units > 1 and gram + total <= instantiated
