"""What decides how many tokens fill a microbatch: how long its kernels take to start.

A GPU is told of one kernel after the other. Up to some tokens a microbatch takes as long as that
takes, so the product fills it up to there (`free_tokens` in `engine/training/memory.py`), and up to
`STARTED_TOGETHER` times fewer where kernels are recorded. Both are assumed; here they are measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpus.items import Item, Outcome, free, said
from gpus.models import LLAMA_1B, LLAMA_350M, Method, Place, Shape, as_product, large_model, real
from gpus.recorded import record
from gpus.speed import Speed, clock
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.training import memory
from taciturn.engine.training.loop import STARTED_TOGETHER
from taciturn.engine.training.memory import random_batch

_SMALL = (4, 16)
_CPU = torch.device("cpu")
_ROUNDS = 6


def items(place: Place, speed: Speed) -> list[Item]:
    """The measurement of this module."""
    return [Item("starts of kernels", 15, partial(_starts, place, speed), speed=True)]


def _starts(place: Place, speed: Speed) -> Outcome:
    """Tokens that take no time, measured and assumed, with kernels one by one and recorded."""
    kinds: list[tuple[Shape, Method]] = [(LLAMA_1B, "lora"), (LLAMA_350M, "full")]
    figures: dict[str, Any] = {}
    told = []
    for shape, method in kinds:
        name = f"{shape.name} {method}"
        try:
            with as_product(place, wished=True):
                figures[name] = _of(real(shape, place), method, place)
            told.append(f"{name}: {_told(figures[name])}")
        except Exception as error:
            figures[name] = {"failure": said(error)}
            told.append(f"{name} failed: {said(error)[:60]}")
        free()
    speed.others["starts"] = figures
    measured = any("free_tokens" in each for each in figures.values())
    return Outcome(None if measured else False, "; ".join(told), figures)


def _of(shape: Shape, method: Method, place: Place) -> dict[str, Any]:
    loss = CausalLmLoss(large_model(shape, method, place))
    device, vocabulary = torch.device(place.device), shape.vocabulary
    # Both far above what starting takes, so that their difference is what tokens take.
    few, many = ((2, 32), (8, 32)) if place.tiny else ((8, 512), (16, 512))
    small, less, more = (
        _seconds(place, partial(_private, loss, random_batch(vocabulary, *each, device)))
        for each in (_SMALL, few, many)
    )
    per_token = (more - less) / (many[0] * many[1] - few[0] * few[1])
    figures: dict[str, Any] = {
        "start": small,
        "start_of_a_layer": small / shape.layers,
        "start_of_a_layer_assumed": memory.LAYER_START_S,
        "seconds_of_a_token": per_token,
        "free_tokens": small / per_token if per_token > 0 else math.nan,
        "free_tokens_assumed": memory.free_tokens(loss),
        "started_together_assumed": STARTED_TOGETHER,
    }
    units, width = _SMALL
    if place.on_gpu:
        graphs = record(loss, vocabulary, [(units, 1, width)])
        batch = random_batch(vocabulary, units, width, _CPU)
        if graphs.recordings:
            recorded = _seconds(
                place, lambda: clip_and_sum(_present(graphs.gradients((batch,), Form.AUTO)), 1.0)
            )
            figures |= {"recorded_start": recorded, "started_together": small / recorded}
        else:
            figures["not_recorded"] = graphs.reason
    return figures


def _private(loss: Any, batch: Any) -> None:
    clip_and_sum(per_example_gradients(loss, batch, Form.AUTO), 1.0)


def _present(gradients: Any) -> Any:
    if gradients is None:
        raise RuntimeError("the recording was not used")
    return gradients


def _seconds(place: Place, work: Callable[[], object]) -> float:
    """Median of some rounds; the first sets things up."""
    now, seconds = clock(place), []
    for _ in range(3 if place.tiny else _ROUNDS):
        start = now()
        work()
        seconds.append(now() - start)
    return statistics.median(seconds[1:])


def _told(figures: dict[str, Any]) -> str:
    told = (
        f"{1e3 * figures['start_of_a_layer']:.2g} ms a layer "
        f"({1e3 * figures['start_of_a_layer_assumed']:.2g} assumed), "
        f"{figures['free_tokens']:,.0f} tokens free ({figures['free_tokens_assumed']:,} assumed)"
    )
    if "started_together" in figures:
        told += (
            f", recorded {figures['started_together']:.1f}x fewer "
            f"({figures['started_together_assumed']} assumed)"
        )
    return told + (
        f", not recorded: {figures['not_recorded']}" if "not_recorded" in figures else ""
    )
