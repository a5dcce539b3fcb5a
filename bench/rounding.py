"""How far a clipped sum moves beyond the unit that is removed, in fp32 and bf16, in each form.

    python bench/rounding.py

Draws of units of random lengths go through microbatches, per-unit gradients and clipping as in a
step of LoRA and of full fine-tuning. Prints the largest change of all other units together when one
is removed, as a share of the clip norm, with the margin of `engine/privacy/clipping.py` beside it.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord
from taciturn.embedded import TINY_MEDICAL
from taciturn.engine.model.load import load_base
from taciturn.engine.model.lora import attach
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import ROUNDING, clip_and_sum, merge_disjoint
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import sum_parts
from taciturn.engine.training.batch import BatchLimits, filled_units, microbatches
from taciturn.planning.plan import AdapterPlan
from taciturn.spec import PerformanceSpec

CLIP = 0.1
UNITS, MAX_TOKENS, REMOVED = 512, 64, 3


class Units:
    """Stands in for a data set: units of one random record each."""

    def __init__(self, vocabulary: int) -> None:
        generator = np.random.default_rng(0)
        lengths = generator.integers(2, MAX_TOKENS + 1, size=UNITS)
        self._ids = [generator.integers(vocabulary, size=n).astype(np.int32) for n in lengths]

    def records(self, unit: int) -> list[TokenizedRecord]:
        """The unit's one record."""
        ids = self._ids[unit]
        return [TokenizedRecord(ids, np.arange(len(ids)) > 0)]


def clipped(loss: nn.Module, units: Units, drawn: list[int], form: Form) -> Tensor:
    """The clipped sum over the units that were drawn, as one vector."""
    limits = BatchLimits(2048, filled_units(UNITS, MAX_TOKENS), MAX_TOKENS)
    total = None
    for group in microbatches(cast(TokenizedDataset, units), np.array(drawn), limits):
        part = clip_and_sum(sum_parts(loss, group, form), CLIP)
        total = part if total is None else merge_disjoint(total, part)
    assert total is not None
    return torch.cat([value.flatten() for value in total.values.values()])


def main() -> None:
    """Print one line for each dtype, method and form."""
    print(f"{UNITS} units in a draw; margin {ROUNDING:.0e} of the clip norm")
    for dtype in ("float32", "bfloat16"):
        for method in ("lora", "full"):
            base = load_base(TINY_MEDICAL, PerformanceSpec(dtype=dtype))
            model = attach(base.model, AdapterPlan(method=method, r=8, alpha=8))
            loss, units = CausalLmLoss(model), Units(base.vocabulary)
            for form in (Form.INSTANTIATE, Form.FACTORS):
                everyone = list(range(UNITS))
                whole, moved = clipped(loss, units, everyone, form), []
                for unit in everyone[:REMOVED]:
                    others = [each for each in everyone if each != unit]
                    own = clipped(loss, units, [unit], form)
                    without = clipped(loss, units, others, form)
                    moved.append(float((whole - without - own).norm()) / CLIP)
                print(f"{dtype}, {method}, {form}: others move by {max(moved):.1e}", flush=True)


if __name__ == "__main__":
    main()
