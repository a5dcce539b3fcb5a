"""What glibc's malloc costs a training step on CPU, and what telling it to keep freed memory saves.

    python bench/allocator.py        3 pairs of processes, interleaved; medians and their ratio

Each process runs ordinary steps of full fine-tuning on taciturn/tiny-medical (32 sequences of 64
tokens: logits of 50 MB), with malloc as it comes or as `keep_freed_memory` sets it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from taciturn.embedded import TINY_MEDICAL
from taciturn.engine.model.load import load_base
from taciturn.malloc import keep_freed_memory
from taciturn.spec import PerformanceSpec

SEQUENCES = 32
TOKENS = 64
STEPS = 8


def measure(keep: bool) -> tuple[float, int]:
    """(median seconds, page faults) of one step; the first two steps do not count."""
    torch.set_num_threads(1)
    if keep and not keep_freed_memory():
        raise SystemExit("this system has no glibc malloc")
    model = load_base(TINY_MEDICAL, PerformanceSpec()).model.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    seconds, faults = [], []
    for _ in range(STEPS + 2):
        tokens = torch.randint(10, 6000, (SEQUENCES, TOKENS))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(seconds[2:]), int(statistics.median(faults[2:]))


def main() -> None:
    """Run both kinds in turn, or one of them as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--child", choices=("default", "keep"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(*measure(arguments.child == "keep"))
        return
    results: dict[str, list[tuple[float, int]]] = {"default": [], "keep": []}
    for _ in range(arguments.pairs):
        for kind, rows in results.items():
            command = [sys.executable, __file__, "--child", kind]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, faults = printed.split()[-2:]
            rows.append((float(seconds), int(faults)))
    for kind, rows in results.items():
        second = statistics.median(row[0] for row in rows)
        fault = statistics.median(row[1] for row in rows)
        print(f"{kind:8} {second:.3f} s and {fault:.0f} page faults per step")
    ratios = [d[0] / k[0] for d, k in zip(results["default"], results["keep"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"default / keep: {statistics.median(ratios):.2f}x (pairs: {spread})")


if __name__ == "__main__":
    main()
