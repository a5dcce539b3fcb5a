"""What padding and fillers cost, and how long making the microbatches takes.

    python bench/batches.py          some minutes
    python bench/batches.py --quick  shows that it works; the figures mean nothing

Draws batches of the lengths of real sentences (PHEE), splits them into microbatches of constant
shapes as training does, and prints the share of computed tokens that are none of a record's, beside
rows padded as the Hugging Face Trainer pads them; and how long making the microbatches takes, as a
share of the private LoRA step that follows. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import torch

from steps.lengths import phee_lengths
from steps.model import Method, ModelShape, build
from steps.variants import PrivateStep, Task
from steps.workload import Workload
from taciturn.engine.training.batch import microbatches

SIZES = (32, 128, 256, 1024)
STEPS = 4
# What the product keeps of a record unless it is told otherwise.
MAX_TOKENS = 512
SMALL = ModelShape(vocabulary=64, hidden=16, intermediate=24, layers=1, heads=2, context=512)


def task_of(method: Method, sequences: int, batches: int, shape: ModelShape) -> Task:
    """Batches of so many real lengths."""
    rows = [phee_lengths(sequences, seed) for seed in range(batches)]
    workload = Workload.random(rows, shape.vocabulary)
    return Task(method, shape, workload, max_tokens=MAX_TOKENS)


def shares(sequences: int, shape: ModelShape) -> str:
    """A row of the table, for batches of so many sequences."""
    task = task_of("lora", sequences, STEPS, shape)
    dataset = task.workload.dataset(1)
    tokens = computed = trainer = 0
    seconds = []
    for batch in task.workload.batches:
        units = task.workload.units_of(batch, 1)
        start = time.process_time()
        parts = [part for group in microbatches(dataset, units, task.limits) for part in group]
        seconds.append(time.process_time() - start)
        computed += sum(part.input_ids_BT.numel() for part in parts)
        tokens += batch.n_tokens
        trainer += batch.input_ids_BT.numel()
    step_s = _step_seconds(task)
    padding = (f"{1 - tokens / each:.1%}" for each in (computed, trainer))
    making = f"{statistics.median(seconds) / step_s:.2%} of {step_s:.2f} s"
    return f"| {sequences} | {' | '.join(padding)} | {making} |"


def _step_seconds(task: Task) -> float:
    variant = PrivateStep(build(task.method, task.shape), task)
    found = []
    for batch in task.workload.batches:
        start = time.process_time()
        variant.run([batch], nullcontext())
        found.append(time.process_time() - start)
    return statistics.median(found[1:])


def main() -> None:
    """Print a row for each size of a batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = SMALL if arguments.quick else ModelShape()
    print("\n| sequences of a batch | padding and fillers | in rows | making microbatches |")
    print("|---|---|---|---|")
    for size in SIZES[: 1 if arguments.quick else None]:
        print(shares(size, shape), flush=True)


if __name__ == "__main__":
    main()
