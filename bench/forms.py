"""Where instantiating per-unit gradients becomes cheaper than keeping their factors.

    python bench/forms.py

Times norm and clipped sum of one matrix both ways, for several shapes, and prints
which was faster and which `engine/privacy/forms.py` chooses.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.factors import FactoredGradients, Factors
from taciturn.engine.privacy.forms import Form, keeps_factors
from taciturn.engine.privacy.layout import BatchLayout
from taciturn.engine.privacy.types import PerUnitGradients

MATRICES = ((256, 256), (704, 256), (6144, 256), (1024, 1024), (2048, 2048))
ROWS = (32, 64, 96, 128, 256)
UNITS = 8
REPEATS = 7


def seconds(of: Callable[[], object]) -> float:
    """Median over repeats, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        of()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Print one line for each matrix and number of rows."""
    torch.set_num_threads(1)
    losses = torch.zeros(UNITS)
    for p, d in MATRICES:
        for rows in ROWS:
            layout = BatchLayout.of(rows, UNITS, torch.arange(UNITS))
            left, right = torch.randn(UNITS, rows, p), torch.randn(UNITS, rows, d)

            def instantiated(a: Tensor = left, b: Tensor = right, of: BatchLayout = layout) -> None:
                clip_and_sum(PerUnitGradients({"w": of.products(a, b)}, losses), 1.0)

            def factored(
                a: Tensor = left,
                b: Tensor = right,
                of: BatchLayout = layout,
                p: int = p,
                d: int = d,
            ) -> None:
                kept = FactoredGradients((Factors(a, b),), of, (p, d))
                clip_and_sum(PerUnitGradients({"w": kept}, losses), 1.0)

            ratio = seconds(instantiated) / seconds(factored)
            chosen = "factors" if keeps_factors(Form.AUTO, p, d, rows, UNITS) else "instantiate"
            print(f"[{p}, {d}], {rows} rows: factors {ratio:.2f}x as fast; chosen: {chosen}")


if __name__ == "__main__":
    main()
