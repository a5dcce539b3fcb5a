"""Where instantiating per-unit gradients becomes cheaper than keeping their factors.

    python bench/forms.py
    python bench/forms.py --device cuda --dtype bfloat16

Times norm and clipped sum of one matrix both ways, for several shapes, and prints
which was faster and which `engine/privacy/forms.py` chooses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.factors import FactoredGradients, Factors
from taciturn.engine.privacy.forms import Form, keeps_factors, rates_of
from taciturn.engine.privacy.layout import BatchLayout
from taciturn.engine.privacy.types import PerUnitGradients

MATRICES = ((256, 256), (704, 256), (6144, 256), (1024, 1024), (2048, 2048))
ROWS = (32, 64, 96, 128, 256)
UNITS = 8
REPEATS = 7


def seconds(of: Callable[[], object], device: torch.device) -> float:
    """Median over repeats, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        of()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print one line for each matrix and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    torch.set_num_threads(1)
    losses, rates = torch.zeros(UNITS, device=device), rates_of(device, dtype)
    for p, d in MATRICES:
        for rows in ROWS:
            layout = BatchLayout.of(rows, UNITS, torch.arange(UNITS, device=device))
            left, right = (torch.randn(UNITS, rows, n, device=device, dtype=dtype) for n in (p, d))

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

            ratio = seconds(instantiated, device) / seconds(factored, device)
            kept = keeps_factors(Form.AUTO, p, d, rows, UNITS, rates=rates)
            chosen = "factors" if kept else "instantiate"
            print(f"[{p}, {d}], {rows} rows: factors {ratio:.2f}x as fast; chosen: {chosen}")


if __name__ == "__main__":
    main()
