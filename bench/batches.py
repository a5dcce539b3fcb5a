"""What padding and fillers cost, what packing saves, and how long making the microbatches takes.

    python bench/batches.py          some minutes
    python bench/batches.py --quick  shows that it works; the figures mean nothing

Draws batches of the lengths of real sentences (PHEE), splits them into microbatches of constant
shapes as training does, and prints the share of computed tokens that are none of a record's, for
units of one record and of four: each in a row of its own, packed into rows of its unit, and padded
as the Hugging Face Trainer pads rows. Then how long making the microbatches takes, as a share of
the private LoRA step that follows. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import product

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


def task_of(
    method: Method, sequences: int, unit_size: int, batches: int, shape: ModelShape
) -> Task:
    """Batches of so many real lengths."""
    rows = [phee_lengths(sequences, seed) for seed in range(batches)]
    workload = Workload.random(rows, shape.vocabulary)
    return Task(method, shape, workload, unit_size=unit_size, max_tokens=MAX_TOKENS)


def shares(sequences: int, unit_size: int, shape: ModelShape) -> str:
    """A row of the table, for batches of so many sequences in units of so many."""
    task = task_of("lora", sequences, unit_size, STEPS, shape)
    dataset = task.workload.dataset(unit_size)
    tokens = trainer = 0
    computed = {False: 0, True: 0}
    seconds = []
    for batch in task.workload.batches:
        units = task.workload.units_of(batch, unit_size)
        for packed in computed:
            limits = replace(task.limits, packed=packed)
            start = time.process_time()
            parts = [part for group in microbatches(dataset, units, limits) for part in group]
            if packed:
                seconds.append(time.process_time() - start)
            computed[packed] += sum(part.input_ids_BT.numel() for part in parts)
        tokens += batch.n_tokens
        trainer += batch.input_ids_BT.numel()
    step_s = _step_seconds(task)
    padding = (f"{1 - tokens / each:.1%}" for each in (*computed.values(), trainer))
    making = f"{statistics.median(seconds) / step_s:.2%} of {step_s:.2f} s"
    return f"| {sequences} | {unit_size} | {' | '.join(padding)} | {making} |"


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
    print(
        "\n| sequences of a batch | of a unit | padding and fillers | packed | as the Trainer pads "
        "| making microbatches |\n|---|---|---|---|---|---|"
    )
    for size, unit_size in product(SIZES[: 1 if arguments.quick else None], (1, 4)):
        print(shares(size, unit_size, shape), flush=True)


if __name__ == "__main__":
    main()
