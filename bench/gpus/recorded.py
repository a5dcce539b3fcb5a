"""Recorded microbatches: a variant of the private step, and the check of its bits."""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from gpus.items import Item, Outcome, SkippedError, cases
from gpus.models import Method, Place, privately, small_loss, vocabulary_of
from steps.variants import PrivateStep, Task
from taciturn.engine.model.load import enable_checkpointing
from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training.batch import Shape, bucket_length
from taciturn.engine.training.graphs import Graphs, recorded, recorder_of

GRAPHS = "private-graphs"
_SHAPES = ((8, 1, 16), (8, 1, 64), (4, 1, 256), (4, 3, 64), (2, 8, 16))


class RecordedStep(PrivateStep):
    """Ours with DP, each padded length recorded before the first step, as a fit does it."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__(model, task)
        self._vocabulary = _size(model)
        self.seconds_to_record = 0.0
        self._recorded: Graphs | None = None

    def graphs(self) -> Graphs:
        """See PrivateStep."""
        if self._recorded is None:
            start = time.perf_counter()
            self._recorded = record(self._loss, self._vocabulary, self._shapes())
            self.seconds_to_record = time.perf_counter() - start
        if not self._recorded.recordings:
            raise RuntimeError(str(self._recorded))
        return self._recorded

    def _shapes(self) -> list[Shape]:
        limits, data = self._task.limits, self._dataset
        longest = {max(data.lengths(unit)) for unit in range(data.n_units)}
        widths = {bucket_length(each, limits.max_tokens, limits.steps) for each in longest}
        return [(limits.units_of(width, 1), 1, width) for width in sorted(widths)]


def _size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def record(loss: nn.Module, vocabulary: int, shapes: list[Shape]) -> Graphs:
    """Recordings of these shapes, as a fit makes them; without any, they say why."""
    recorder = recorder_of(next(loss.parameters()).device)
    if recorder is None:
        raise SkippedError("only a GPU records")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is told
        return recorded(loss, vocabulary, shapes, Form.AUTO, recorder)


def items(place: Place) -> list[Item]:
    """The checks of this module."""
    return [Item("graphs", 15, partial(_graphs, place))]


def _graphs(place: Place) -> Outcome:
    """Gradients and clipped sums from recordings, and as ever, bit for bit."""
    if not place.on_gpu:
        raise SkippedError("only a GPU records")
    kinds: list[tuple[str, Method, torch.dtype, bool]] = [
        ("llama", "lora", place.half(), False),
        ("llama", "lora", torch.float32, False),
        ("llama", "lora", place.half(), True),
        ("llama", "full", place.half(), False),
        ("llama", "nf4", place.half(), False),
        ("qwen3", "lora", place.half(), False),
        ("gemma3", "lora", place.half(), False),
    ]
    return cases(
        {
            f"{name} {method} {str(dtype).removeprefix('torch.')}{' again' if again else ''}": (
                partial(privately, place, partial(_case, name, method, dtype, again, place))
            )
            for name, method, dtype, again in kinds
        }
    )


def _case(
    architecture: str, method: Method, dtype: torch.dtype, again: bool, place: Place
) -> Outcome:
    loss = small_loss(architecture, method, dtype, place)
    if again:
        enable_checkpointing(loss.model)
    vocabulary = vocabulary_of(loss)
    start = time.perf_counter()
    graphs = record(loss, vocabulary, list(_SHAPES))
    seconds = time.perf_counter() - start
    if not graphs.recordings:
        return Outcome(False, graphs.reason)
    # Weights after a step, and rows that nobody has compared; each shape again after the others.
    with torch.no_grad():
        for value in trainable_parameters(loss).values():
            value.mul_(1.01)
    off = 0
    for seed in range(2):
        for shape in _SHAPES:
            batch = _rows(vocabulary, shape, seed)
            own = graphs.of(loss).gradients((batch,), Form.AUTO)
            if own is None:
                return Outcome(False, "not used", {"shape": shape})
            replayed = clip_and_sum(own, 0.1)
            computed = clip_and_sum(
                per_example_gradients(loss, batch.to(torch.device(place.device)), Form.AUTO), 0.1
            )
            pairs = [(replayed.values[name], computed.values[name]) for name in computed.values]
            pairs += zip(replayed.tally.unread, computed.tally.unread, strict=True)
            off += sum(not torch.equal(one, other) for one, other in pairs)
    told = f"{len(_SHAPES)} in {seconds:.1f} s" if not off else f"{off} differ"
    return Outcome(not off, told, {"seconds": seconds, "differ": off})


def _rows(vocabulary: int, shape: Shape, seed: int) -> UnitBatch:
    generator = torch.Generator().manual_seed(1 + seed)
    units, records, width = shape
    rows = (units * records, width)
    ids_BT = torch.randint(vocabulary, rows, generator=generator)
    weights_BT = torch.rand(rows, generator=generator) / width
    weights_BT[:, 0] = 0.0
    return UnitBatch(ids_BT, weights_BT, torch.arange(units).repeat_interleave(records), units)
