"""All variants do the same work, and those that claim privacy clip and add noise.

The Trainer's loss is a mean over the batch's tokens: it is compared on records of one length.
"""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from steps import flops, registry
from steps.model import Method, ModelShape, build, trained
from steps.registry import GHOST, HOOKS, ORDINARY, PLAIN, PRIVATE, RECORD_LEVEL, TRAINER
from steps.variants import LEARNING_RATE, PrivateStep, Task
from steps.workload import Workload

SHAPE = ModelShape(vocabulary=64, hidden=16, intermediate=24, layers=2, heads=2, context=64)
# Clipping and noise too weak to matter: what is left is the gradient.
WEAK = {"noise_multiplier": 1e-12, "l2_clip_norm": 1e3}
METHODS = get_args(Method)
needs_opacus = pytest.mark.skipif(
    importlib.util.find_spec("opacus") is None, reason="taciturn[bench] is not installed"
)
OPACUS = [pytest.param(name, marks=needs_opacus) for name in (HOOKS, GHOST)]


def task(method: Method, lengths: list[int], **options: float) -> Task:
    """Two batches of records of these lengths."""
    return Task(method, SHAPE, Workload.random([lengths] * 2, SHAPE.vocabulary), **options)  # type: ignore[arg-type]


def update(name: str, given: Task) -> Tensor:
    """What a step on the first batch adds to the trained weights, as one vector."""
    model = build(given.method, given.shape)
    before = torch.cat([value.detach().flatten() for value in trained(model)])
    variant = registry.builder(name)(model, given)
    variant.run(given.workload.batches[:1], nullcontext())
    return torch.cat([value.detach().flatten() for value in trained(model)]) - before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [ORDINARY, PRIVATE, RECORD_LEVEL, *OPACUS])
def test_same_update_as_the_plain_loop(name: str, method: Method) -> None:
    given = task(method, [9, 16, 4, 12], **WEAK)
    _agree(update(name, given), update(PLAIN, given))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [PLAIN, ORDINARY, PRIVATE, *OPACUS])
def test_microbatches_add_up(name: str, method: Method) -> None:
    given = task(method, [9, 16, 4, 12], **WEAK)
    _agree(update(name, replace(given, microbatch=2)), update(PLAIN, given))


@pytest.mark.parametrize("method", METHODS)
def test_trainer_makes_the_plain_loops_second_step(method: Method) -> None:
    given = task(method, [12] * 4)
    twice = replace(given, workload=Workload((given.workload.batches[0],) * 2))
    model = build(method, SHAPE)
    before = torch.cat([value.detach().flatten() for value in trained(model)])
    plain = registry.builder(PLAIN)(model, given)
    plain.run(twice.workload.batches, nullcontext())
    expected = torch.cat([value.detach().flatten() for value in trained(model)]) - before
    # It makes one step on the first batch before those that are measured.
    _agree(update(TRAINER, given), expected)


@pytest.mark.parametrize("name", [PRIVATE, *OPACUS])
def test_noise_moves_weights_where_there_is_no_gradient(name: str) -> None:
    without_targets = task("lora", [1, 1])
    assert (update(PLAIN, without_targets) == 0).all()
    first, second = update(name, without_targets), update(name, without_targets)
    assert (first != 0).float().mean() > 0.99
    assert not torch.equal(first, second)


@pytest.mark.parametrize("unit_size", [1, 2])
def test_private_step_clips_every_unit(unit_size: int) -> None:
    given = replace(task("full", [8, 8, 8, 8], l2_clip_norm=1e-6), unit_size=unit_size)
    variant = PrivateStep(build("full", SHAPE), given)
    variant.run(given.workload.batches, nullcontext())
    assert [(count.n_units, count.n_clipped) for count in variant.counts] == [
        (4 // unit_size, 4 // unit_size)
    ] * 2


@needs_opacus
def test_opacus_knows_no_unit_of_several_rows() -> None:
    given = replace(task("lora", [8, 8]), unit_size=2)
    with pytest.raises(NotImplementedError, match="one row"):
        registry.make(HOOKS, given)


def test_operations_of_a_plain_step_are_those_of_the_formula() -> None:
    sequences, tokens = 2, 32
    given = task("full", [tokens] * sequences)
    counted = flops.count(registry.make(PLAIN, given), given.workload.batches[:1])
    model = build("full", SHAPE)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    # Forward, and backward to weights and to inputs; attention: two products, and five backward.
    linear = 6 * sequences * tokens * weights
    attention = 14 * sequences * tokens**2 * SHAPE.hidden * SHAPE.layers
    assert counted == pytest.approx(linear + attention, rel=0.01)


@pytest.mark.parametrize("name", [TRAINER, ORDINARY, PRIVATE, *OPACUS])
def test_operations_are_counted_in_every_variant(name: str) -> None:
    given = task("full", [16] * 4)
    block = given.workload.batches[:1]
    plain = flops.count(registry.make(PLAIN, given), block)
    assert 0.95 * plain < flops.count(registry.make(name, given), block) < 3 * plain


def _agree(found: Tensor, expected: Tensor) -> None:
    # AdamW's first steps are signs: where the gradient is next to nothing they say nothing.
    moved = expected.abs() > 0.9 * LEARNING_RATE
    assert moved.float().mean() > 0.3
    assert torch.nn.functional.cosine_similarity(found[moved], expected[moved], dim=0) > 0.999
