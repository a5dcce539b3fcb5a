"""A step as a whole: when it waits for the device, and units that it computes again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mutants.harness import LIMITS, UNITS, streams
from mutants.sum_checks import OPPOSITES, Opposites
from mutants.variants import Dataset, State, names_of
from support.tiny_models import build, with_lora
from support.waiting import no_waiting, noted_waits
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.types import BoundedSum, ClipCounts, PerUnitGradients, UnitBatch
from taciturn.engine.training.batch import BatchLimits
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import ordinary_step, private_step

CPU = torch.device("cpu")
SHORT = BatchLimits(64, 3, 64)
PACKED = replace(SHORT, packed=True)
KINDS = [
    ("llama", "lora"),
    ("llama-tied", "full"),
    ("gpt2", "full"),
    ("qwen3", "lora"),
    ("gemma3", "full"),
]


class Everybody(DpSgdMechanism):
    """Draws each unit."""

    def sample(self, stream: Any, n_present: int) -> NDArray[np.int64]:
        return np.arange(n_present)


class Hurried(Everybody):
    """Refuses to wait for a device before the sum of all microbatches is complete."""

    def clip_and_sum(
        self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
    ) -> BoundedSum:
        with no_waiting(CPU):
            return super().clip_and_sum(parameters, microbatches)


def loss_of(name: str, method: str, *, checkpointing: bool = False) -> CausalLmLoss:
    model = build(name)
    if method == "lora":
        model = with_lora(model.requires_grad_(False))
    loss = CausalLmLoss(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return loss


def step(
    loss: nn.Module,
    dataset: Dataset,
    form: Form,
    mechanism: type[DpSgdMechanism] = Everybody,
    clip: float = 0.25,
    limits: BatchLimits = SHORT,
) -> tuple[State, ClipCounts]:
    names = names_of(loss)
    state = State({name: loss.get_parameter(name) for name in names})
    made = mechanism(16, 4, 1, 1e-7, clip, names)
    arguments: Any = (loss, dataset, made, state, streams(1), limits, form)
    return state, private_step(*arguments)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "method"), KINDS)
def test_no_microbatch_waits_for_the_device(name: str, method: str, checkpointing: bool) -> None:
    """Units of one and several records, units in parts, and fillers."""
    loss = loss_of(name, method, checkpointing=checkpointing)
    for form in Form:
        for limits in (SHORT, PACKED):
            step(loss, Dataset(UNITS), form, Hurried, limits=limits)


@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS])
@pytest.mark.parametrize(("name", "method"), KINDS)
def test_records_that_share_a_row_give_what_they_give_apart(
    name: str, method: str, form: Form
) -> None:
    loss = loss_of(name, method)
    apart, counts = step(loss, Dataset(UNITS), form)
    packed, packed_counts = step(loss, Dataset(UNITS), form, limits=PACKED)
    assert packed_counts.n_units == counts.n_units
    assert packed_counts.loss_sum == pytest.approx(counts.loss_sum, rel=1e-5)
    for key, value in apart.released[0].values.items():
        assert (packed.released[0].values[key] - value).norm() <= 1e-4 * value.norm() + 1e-6


def test_the_guard_sees_what_waits() -> None:
    class Curious(CausalLmLoss):
        def forward(self, batch: UnitBatch) -> Tensor:
            batch.loss_weights_BT[batch.loss_weights_BT > 0].sum()
            return super().forward(batch)

    with pytest.raises(AssertionError, match="waits for the device"):
        step(Curious(build("llama")), Dataset(UNITS), Form.AUTO, Hurried)


def test_a_private_step_reads_once() -> None:
    loss = loss_of("llama", "lora")
    for units in (UNITS[:1], UNITS, UNITS * 2):
        with noted_waits() as waits:
            step(loss, Dataset(units), Form.AUTO)
        # After it, numbers are sent to the other ranks, from the CPU's memory.
        assert waits == ["cpu", "tensor", "tolist"]


def test_an_ordinary_step_reads_as_often_for_many_microbatches_as_for_one() -> None:
    loss = loss_of("llama", "lora")
    reads = []
    for units in (UNITS[:1], UNITS, UNITS * 2):
        state = cast(TrainingState, Ordinary(loss))
        data = cast(TokenizedDataset, Dataset(units))
        with noted_waits() as waits:
            counts = ordinary_step(loss, data, np.arange(len(units)), state, SHORT)
        reads.append(waits)
        packed = ordinary_step(loss, data, np.arange(len(units)), state, PACKED)
        assert packed.n_units == counts.n_units == sum(map(len, units))
        assert packed.loss_sum == pytest.approx(counts.loss_sum, rel=1e-5)
    assert reads[0] == reads[1] == reads[2]


class Ordinary(State):
    """Forgets the gradients of an ordinary step."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__({name: loss.get_parameter(name) for name in names_of(loss)})

    def apply_without_privacy(self, gradient: Mapping[str, Tensor]) -> None:
        """What an ordinary step calls."""


def test_units_whose_factors_cancel_are_counted_once() -> None:
    data = Opposites.data()
    state, counts = step(Opposites(), data, Form.FACTORS, clip=1e-9)
    _, expected = step(Opposites(), data, Form.INSTANTIATE, clip=1e-9)
    assert counts.n_units == expected.n_units == data.n_units
    assert counts.n_clipped == expected.n_clipped
    assert counts.n_non_finite == expected.n_non_finite == 0
    assert counts.loss_sum == pytest.approx(expected.loss_sum)
    assert counts.norm_sum == pytest.approx(expected.norm_sum)
    assert len(state.released) == 1


def test_only_such_units_are_read_again() -> None:
    """They are rare: the others' data are looked at once."""
    data = Opposites.data()
    for unit in OPPOSITES:
        data.units[unit] = data.units[0]
    step(Opposites(), data, Form.FACTORS)
    assert sorted(data.read) == list(range(data.n_units))


def test_a_failed_step_leaves_nothing_behind() -> None:
    """No microbatch that was prepared for it gets into a later step."""

    class Failing(CausalLmLoss):
        calls = 0

        def forward(self, batch: UnitBatch) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("out of order")
            return super().forward(batch)

    loss = Failing(build("llama"))
    with pytest.raises(RuntimeError, match="out of order"):
        step(loss, Dataset(UNITS), Form.AUTO)
    (after, counts), (alone, expected) = (
        step(each, Dataset(UNITS), Form.AUTO) for each in (loss, CausalLmLoss(build("llama")))
    )
    assert counts == expected
    for one, other in zip(after.released, alone.released, strict=True):
        for name, value in one.values.items():
            assert torch.equal(value, other.values[name])


def test_limits_of_these_tests_split_a_step() -> None:
    """Else they would say nothing about several microbatches, or parts."""
    assert max(map(len, UNITS)) > 1
    assert sum(max(unit) for unit in UNITS) > LIMITS.tokens
