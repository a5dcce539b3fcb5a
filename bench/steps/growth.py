"""How time grows with the tokens of a batch, and memory with the rows of the data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from steps.measure import Clock, Stopwatch
from steps.memory import answer
from steps.model import Method, ModelShape, build
from steps.registry import PRIVATE, make
from steps.results import Growth, RowsPeak
from steps.variants import NOISE_MULTIPLIER, Task, training_state
from steps.workload import Workload
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.embedded import model_path
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.training.batch import BatchLimits
from taciturn.engine.training.step import Streams, private_step
from taciturn.malloc import keep_freed_memory
from taciturn.planning.defaults import L2_CLIP_NORM
from taciturn.spec import PerformanceSpec

RECORD_TOKENS = 64
_TAIL = 3
_EXPECTED_BATCH = 256
_ROWS_STEPS = 2
_ROWS_MAX_TOKENS = 64


def time_by_tokens(
    method: Method, shape: ModelShape, sequences: Sequence[int], rounds: int, clock: Clock
) -> Growth:
    """Seconds of a private step at each batch size, the least of `rounds`, and how they grow.

    The least, because a fit over decades has points of seconds beside points of milliseconds, and
    what else runs on a machine only adds. What a step costs at any size (optimiser, noise) bends
    the small end up and the slope down, so the slope of the largest sizes stands beside it.
    """
    workloads = [
        Workload.random([[RECORD_TOKENS] * size] * rounds, shape.vocabulary) for size in sequences
    ]
    seconds = [_least(Task(method, shape, workload), clock) for workload in workloads]
    tokens = [size * RECORD_TOKENS for size in sequences]
    slope, r_squared = log_log_fit(tokens, seconds)
    tail, _ = log_log_fit(tokens[-_TAIL:], seconds[-_TAIL:])
    return Growth(tuple(tokens), tuple(seconds), slope, r_squared, tail)


def log_log_fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and R² of log y against log x, least squares."""
    log_x, log_y = np.log(np.asarray(xs, float)), np.log(np.asarray(ys, float))
    slope, intercept = np.polyfit(log_x, log_y, 1)
    left = log_y - (slope * log_x + intercept)
    spread = log_y - log_y.mean()
    return float(slope), float(1 - (left @ left) / (spread @ spread))


def memory_by_rows(rows: Sequence[int], threads: int) -> list[RowsPeak]:
    """Peak memory of a fresh process that prepares so many rows and makes private steps on them."""
    return [answer(_rows_child, (count, threads), RowsPeak) for count in rows]


def _least(task: Task, clock: Clock) -> float:
    variant = make(PRIVATE, task)
    found = []
    for batch in task.workload.batches:
        watch = Stopwatch(clock)
        variant.run([batch], watch)
        found.append(watch.seconds)
    return min(found)


def _rows_child(send: Connection, rows: int, threads: int) -> None:
    # bench/data_memory.py is a script of its own; its folder is where this package lies.
    from transformers import AutoTokenizer

    import data_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    with tempfile.TemporaryDirectory() as folder:
        dataset = data_memory.measure(Path(folder), rows, 0, tokenizer).dataset
        _train(dataset)
    send.send(RowsPeak(rows, data_memory.peak_bytes(), _own_bytes()))


def _own_bytes() -> int | None:
    """Memory of this process without pages of mapped files; None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text().splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[0] == "RssAnon:"), None)


def _train(dataset: TokenizedDataset) -> None:
    """Private steps, exact Poisson sampling over all units included."""
    loss = CausalLmLoss(build("lora", ModelShape()))
    state = training_state(loss, private=True)
    mechanism = DpSgdMechanism(
        n_units=dataset.n_units,
        expected_batch_size=min(_EXPECTED_BATCH, dataset.n_units),
        steps=_ROWS_STEPS,
        noise_multiplier=NOISE_MULTIPLIER,
        l2_clip_norm=L2_CLIP_NORM,
        parameter_names=tuple(state.parameters),
    )
    streams = Streams.fresh()
    tokens = PerformanceSpec().microbatch_tokens or 2048
    limits = BatchLimits(tokens, math.ceil(tokens / _ROWS_MAX_TOKENS), _ROWS_MAX_TOKENS)
    for _ in range(_ROWS_STEPS):
        private_step(loss, dataset, mechanism, state, streams, limits)
