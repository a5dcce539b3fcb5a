"""What packed rows and a prefetching thread could still save: padding, and the making of batches.

    python bench/batches.py

Draws batches of the lengths of real sentences (PHEE), splits them into microbatches as training
does, and prints the share of padding in them, beside rows padded as the Hugging Face Trainer pads
them; and how long making the microbatches takes, as a share of the private LoRA step that follows.
Processor time of one thread.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import torch

from steps.lengths import phee_lengths
from steps.model import ModelShape, build
from steps.variants import PrivateStep, Task
from steps.workload import Workload
from taciturn.engine.data.batch import microbatches

SIZES = (32, 128, 256, 1024)
STEPS = 4


def measure(sequences: int) -> str:
    """A row of the table, for batches of so many sequences."""
    shape = ModelShape()
    rows = [phee_lengths(sequences, seed) for seed in range(STEPS)]
    task = Task("lora", shape, Workload.random(rows, shape.vocabulary))
    dataset = task.workload.dataset(1)
    tokens = padded = trainer = 0
    seconds = []
    for batch in task.workload.batches:
        units = task.workload.units_of(batch, 1)
        start = time.process_time()
        parts = [part for group in microbatches(dataset, units, task.limits) for part in group]
        seconds.append(time.process_time() - start)
        tokens += batch.n_tokens
        padded += sum(part.input_ids_BT.numel() for part in parts)
        trainer += batch.input_ids_BT.numel()
    step_s = _step_seconds(task)
    share = statistics.median(seconds) / step_s
    return (
        f"| {sequences} | {1 - tokens / padded:.1%} | {1 - tokens / trainer:.1%} | "
        f"{share:.2%} of {step_s:.2f} s |"
    )


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
    torch.set_num_threads(1)
    print("| sequences of a batch | padding | padding in rows | making microbatches |")
    print("|---|---|---|---|")
    for sequences in SIZES:
        print(measure(sequences), flush=True)


if __name__ == "__main__":
    main()
