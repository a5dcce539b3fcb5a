"""How far fp32 products move a clipped sum beyond the unit that was added or removed.

    python bench/rounding.py

Sums of gradients kept as factors are matrix products in fp32: removing one unit changes how the
others' rows are rounded. It may also change which form the others' gradients have. Prints the
largest of the first changes over the units of batches of random tokens, and the change of all units
from one form to the other, as shares of the clip norm, with the margin of
`engine/privacy/clipping.py` beside them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from taciturn.embedded import TINY_MEDICAL
from taciturn.engine.model.load import load_base
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import ROUNDING, clip_and_sum
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import UnitBatch
from taciturn.spec import PerformanceSpec

CLIP = 0.1
SHAPES = ((4, 64), (32, 64), (64, 32), (8, 256))


def batch(units: list[int], tokens: int, vocabulary: int) -> UnitBatch:
    """Units of one random sequence each; a unit's tokens depend on its number only."""
    rows = [
        torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(unit))
        for unit in units
    ]
    weights = torch.full((len(units), tokens), 1 / (tokens - 1))
    weights[:, 0] = 0
    return UnitBatch(torch.stack(rows), weights, torch.arange(len(units)), len(units))


def clipped(
    loss: nn.Module, units: list[int], tokens: int, vocabulary: int, form: Form = Form.FACTORS
) -> Tensor:
    """The clipped sum over units, as one vector."""
    gradients = per_example_gradients(loss, batch(units, tokens, vocabulary), form)
    total = clip_and_sum(gradients, CLIP)
    return torch.cat([value.flatten() for value in total.values.values()])


def main() -> None:
    """Print one line for each shape."""
    base = load_base(TINY_MEDICAL, PerformanceSpec())
    loss = CausalLmLoss(copy.deepcopy(base.model).requires_grad_(True))
    print(f"margin {ROUNDING:.0e} of the clip norm")
    for n_units, tokens in SHAPES:
        everyone = list(range(n_units))
        whole = clipped(loss, everyone, tokens, base.vocabulary)
        moved = []
        for unit in everyone[:8]:
            others = [each for each in everyone if each != unit]
            without = clipped(loss, others, tokens, base.vocabulary)
            own = clipped(loss, [unit], tokens, base.vocabulary)
            moved.append(float((whole - without - own).norm()) / CLIP)
        other_form = clipped(loss, everyone, tokens, base.vocabulary, Form.INSTANTIATE)
        formed = float((whole - other_form).norm()) / CLIP
        print(
            f"{n_units} units of {tokens} tokens: others move by {max(moved):.1e}, with their form "
            f"by {formed:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
