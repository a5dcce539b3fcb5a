"""What padding costs, and what packed rows save of it; how long making the microbatches takes.

    python bench/batches.py          some minutes
    python bench/batches.py --quick  shows that it works; the figures mean nothing

Draws batches of the lengths of real sentences (PHEE), splits them into microbatches as training
does, padded and packed, and prints the share of padding in both, beside rows padded as the Hugging
Face Trainer pads them; how long making the microbatches takes, as a share of the private LoRA step
that follows; and the time of private steps with packed rows over that with padded ones, the same
draws in turn. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

import torch

from steps.lengths import phee_lengths
from steps.measure import CLOCKS, Spread, interleave
from steps.model import Method, ModelShape, build
from steps.settings import METHODS
from steps.variants import OrdinaryStep, PrivateStep, Task, Variant
from steps.workload import Workload
from taciturn.engine.data.batch import microbatches

SIZES = (32, 128, 256, 1024)
TIMED_SIZES = (32, 128, 256)
STEPS = 4
ROUNDS = 8
# What the product keeps of a record unless it is told otherwise.
MAX_TOKENS = 512
SMALL = ModelShape(vocabulary=64, hidden=16, intermediate=24, layers=1, heads=2, context=512)


def task_of(method: Method, sequences: int, batches: int, shape: ModelShape) -> Task:
    """Batches of so many real lengths."""
    rows = [phee_lengths(sequences, seed) for seed in range(batches)]
    workload = Workload.random(rows, shape.vocabulary)
    return Task(method, shape, workload, max_tokens=MAX_TOKENS)


def shares(sequences: int, shape: ModelShape) -> str:
    """A row of the table of padding, for batches of so many sequences."""
    task = task_of("lora", sequences, STEPS, shape)
    dataset = task.workload.dataset(1)
    tokens = trainer = 0
    computed, seconds = [], []
    for packed in (False, True):
        limits, total = replace(task, packed=packed).limits, 0
        for batch in task.workload.batches:
            units = task.workload.units_of(batch, 1)
            start = time.process_time()
            parts = [part for group in microbatches(dataset, units, limits) for part in group]
            seconds.append(time.process_time() - start)
            total += sum(part.computed_tokens for part in parts)
        computed.append(total)
    for batch in task.workload.batches:
        tokens += batch.n_tokens
        trainer += batch.input_ids_BT.numel()
    step_s = _step_seconds(task)
    made = (statistics.median(part) / step_s for part in (seconds[:STEPS], seconds[STEPS:]))
    padding = (f"{1 - tokens / each:.1%}" for each in (*computed, trainer))
    making = " and ".join(f"{each:.2%}" for each in made)
    return f"| {sequences} | {' | '.join(padding)} | {making} of {step_s:.2f} s |"


def _step_seconds(task: Task) -> float:
    variant = PrivateStep(build(task.method, task.shape), task)
    found = []
    for batch in task.workload.batches:
        start = time.process_time()
        variant.run([batch], nullcontext())
        found.append(time.process_time() - start)
    return statistics.median(found[1:])


def times(method: Method, sequences: int, rounds: int, shape: ModelShape) -> str:
    """A row of the table of times."""
    padded = task_of(method, sequences, rounds + 1, shape)
    tasks = {"padded": padded, "packed": replace(padded, packed=True)}
    cells = []
    for kind in (PrivateStep, OrdinaryStep):
        variants: dict[str, Variant] = {
            name: kind(build(method, shape), task) for name, task in tasks.items()
        }
        blocks = padded.workload.blocks(1)
        found = interleave(variants, blocks, 1, clock=CLOCKS["processor"])
        ratio = found.ratio("packed", "padded")
        cells.append(f"{_spread(ratio)} of {found.spread('padded').median:.2f} s")
    return f"| {method} | {sequences} | {' | '.join(cells)} |"


def _spread(of: Spread) -> str:
    return f"{of.median:.2f} ({of.low:.2f}-{of.high:.2f})"


def main() -> None:
    """Print a row for each size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=METHODS, nargs="*", default=METHODS, help="timed methods")
    parser.add_argument("--sizes", type=int, nargs="*", default=TIMED_SIZES, help="timed batches")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each timed batch")
    parser.add_argument("--times", action="store_true", help="no table of padding")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = SMALL if arguments.quick else ModelShape()
    if not arguments.times:
        heads = "sequences of a batch | padding | packed | in rows | making microbatches"
        _table(heads, (shares(size, shape) for size in SIZES[: 1 if arguments.quick else None]))
    rounds, sizes = (1, SIZES[:1]) if arguments.quick else (arguments.rounds, arguments.sizes)
    cases = [(method, size) for method in arguments.only for size in sizes]
    heads = "method | sequences | packed / padded, DP | packed / padded, no DP"
    _table(heads, (times(method, size, rounds, shape) for method, size in cases))


def _table(heads: str, rows: Iterable[str]) -> None:
    print(f"\n| {heads} |\n|{'---|' * (heads.count('|') + 1)}")
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
