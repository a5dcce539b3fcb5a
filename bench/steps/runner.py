"""Runs what the settings ask for and collects the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from steps import flops, growth, memory
from steps.measure import CLOCKS, FAILURES, Timings, failure_of, interleave
from steps.model import ModelShape, build
from steps.registry import (
    GHOST,
    HOOKS,
    LABELS,
    NAMES,
    PLAIN,
    PRIVATE,
    RECORD_LEVEL,
    TRAINER,
    UNIT_NAMES,
    builder,
    make,
)
from steps.results import EpochRow, Results, Row
from steps.settings import MEMORY_STEPS, METHODS, Cell, Settings
from steps.variants import Task, Variant
from steps.workload import Batch, Workload
from taciturn.malloc import keep_freed_memory

Say = Callable[[str], None]

_PROBE = ModelShape(vocabulary=64, hidden=16, intermediate=24, layers=1, heads=2, context=64)


def run(settings: Settings, threads: int, say: Say) -> Results:
    """All that is wanted; `say` gets a line of progress now and then."""
    results = Results(probes=tied_probes())
    for cell in settings.cells():
        say(cell.name)
        results.steps += measured_cell(cell, settings, threads)
    for method in METHODS:
        if settings.wanted(f"lengths/{method}"):
            say(f"lengths/{method}")
            results.epochs += measured_epochs(settings, settings.epoch(method))
    for method in METHODS:
        if settings.wanted(f"growth/{method}"):
            say(f"growth/{method}")
            results.growth[method] = growth.time_by_tokens(
                method,
                settings.shape,
                settings.growth_sequences,
                settings.growth_rounds,
                CLOCKS[settings.clock],
            )
    if settings.wanted("rows"):
        say("rows")
        results.rows = growth.memory_by_rows(settings.rows, threads)
    return results


def prepare(threads: int, keep: bool) -> str:
    """Fix the threads and the allocator of this process; says which allocator it is."""
    torch.set_num_threads(threads)
    if keep and keep_freed_memory():
        return "glibc's malloc, told to keep freed memory, for all variants"
    return "as it comes"


def measured_cell(cell: Cell, settings: Settings, threads: int) -> list[Row]:
    """Time, operations and memory of every variant in one cell."""
    task = cell.task(settings.shape, settings.batches(cell))
    names = NAMES if cell.unit_size == 1 else UNIT_NAMES
    variants, failures = _made(names, task)
    counting, *rounds = task.workload.blocks(1)
    # It warms up, too: what a first step sets up is not in the time of the rounds.
    counted = _counted(variants, failures, counting)
    timings = interleave(variants, rounds, 0, settings.tries, CLOCKS[settings.clock])
    timings.failures.update(failures)
    variants.clear()
    short = replace(task, workload=Workload(task.workload.batches[:MEMORY_STEPS]))
    repeats = {PRIVATE: settings.memory_processes}
    peaks = {
        name: memory.typical_peak(name, short, threads, repeats.get(name, 1))
        for name in timings.seconds
    }
    return [_row(cell, name, timings, counted, peaks) for name in names]


def measured_epochs(settings: Settings, task: Task) -> list[EpochRow]:
    """Epochs of real lengths, one variant after another, epoch after epoch."""
    variants, failures = _made(NAMES, task)
    per_epoch = -(-settings.epoch_records // settings.epoch_sequences)
    blocks = task.workload.blocks(per_epoch)
    timings = interleave(variants, blocks, 1, settings.tries, CLOCKS[settings.clock])
    timings.failures.update(failures)
    tokens = sum(batch.n_tokens for batch in blocks[-1])
    return [_epoch_row(task, name, timings, tokens) for name in NAMES]


def tied_probes() -> dict[str, str]:
    """What Opacus does with a model whose embedding is tied to its head, at full fine-tuning."""
    task = Task("full", _PROBE, Workload.random([[8, 8]] * 2, _PROBE.vocabulary))
    return {LABELS[name]: _probe(name, task) for name in (HOOKS, GHOST)}


def _probe(name: str, task: Task) -> str:
    try:
        variant = builder(name)(build("full", task.shape, tied=True), task)
    except ModuleNotFoundError as error:
        return failure_of(error)
    failures = interleave({name: variant}, task.workload.blocks(1), warmup=0).failures
    return failures.get(name, "runs")


def _counted(
    variants: dict[str, Variant], failures: dict[str, str], block: Sequence[Batch]
) -> dict[str, int]:
    """Operations of each variant; one that fails moves to the failures."""
    counted = {}
    for name in list(variants):
        try:
            counted[name] = flops.count(variants[name], block)
        except FAILURES as error:
            failures[name] = failure_of(error)
            del variants[name]
    return counted


def _made(names: Iterable[str], task: Task) -> tuple[dict[str, Variant], dict[str, str]]:
    variants, failures = {}, {}
    for name in names:
        try:
            variants[name] = make(name, task)
        except (NotImplementedError, ModuleNotFoundError) as error:
            failures[name] = failure_of(error)
    return variants, failures


def _row(
    cell: Cell,
    name: str,
    timings: Timings,
    counted: dict[str, int],
    peaks: dict[str, memory.Peak],
) -> Row:
    key = (cell.name, cell.method, cell.tokens, cell.sequences, cell.unit_size, name)
    if name in timings.failures:
        return Row(*key, failure=timings.failures[name])
    compared = RECORD_LEVEL in timings.seconds
    return Row(
        *key,
        seconds=timings.spread(name),
        ratio=timings.ratio(name, PLAIN),
        records_ratio=timings.ratio(name, RECORD_LEVEL) if compared else None,
        flops=counted[name],
        peak_bytes=peaks[name].added_bytes if peaks[name].failure is None else None,
        others=timings.others,
        failure=peaks[name].failure,
    )


def _epoch_row(task: Task, name: str, timings: Timings, tokens: int) -> EpochRow:
    if name in timings.failures:
        return EpochRow(task.method, name, tokens, failure=timings.failures[name])
    return EpochRow(
        task.method,
        name,
        tokens,
        seconds=timings.spread(name),
        ratio=timings.ratio(name, PLAIN),
        trainer_ratio=timings.ratio(name, TRAINER) if TRAINER in timings.seconds else None,
        others=timings.others,
    )
