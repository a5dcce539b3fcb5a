"""Distance between the logits of an exported model and of the fitted one, and how far it may be."""

from __future__ import annotations

import torch
from torch import Tensor

from taciturn.certificate.derivation import Comparison, Weights
from taciturn.errors import AdapterError

LIMITS: dict[Weights, float] = {"f32": 1e-4, "f16": 1e-2, "q8_0": 0.1}
"""Largest deviation of the logits, as `deviation` measures it.

q8_0 rounds each weight by at most 1/254 of the largest of its block of 32, about 0.6 % of a weight
in the root of the mean square; every product on the way to the logits adds an error of that size,
independent of the others, and the residual stream adds the squares up: a few per cent for models
of any depth. f16 rounds by at most 2^-11 of the weight itself, a twentieth of that. The limits
leave room of a few times that; a weight in a wrong place gives a deviation near 1.
"""


@torch.no_grad()
def deviation(expected: Tensor, actual: Tensor) -> float:
    """Root of the mean square of the differences, over that of the expected logits.

    Both after the mean over the vocabulary is taken off, which no probability depends on.
    """
    centred = expected - expected.mean(-1, keepdim=True)
    other = actual - actual.mean(-1, keepdim=True)
    return float((centred - other).norm() / centred.norm())


def compare(expected: Tensor, actual: Tensor, weights: Weights, what: str) -> Comparison:
    """Return how far the logits are apart; raises AdapterError where that is too far."""
    distance, limit = deviation(expected, actual), LIMITS[weights]
    if not distance <= limit:
        raise AdapterError(
            f"the logits of {what}, read back, deviate by {distance:.2g} from the fitted model's, "
            f"and at most {limit:g} is rounding; it was not released"
        )
    return Comparison(deviation=distance, bound=limit)
