"""Recorded microbatches: the same bits as computed ones, on any rows and weights, or none at all.

The CPU's operations are repeated as a CUDA graph repeats kernels (`support/recording.py`).
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.training.test_step import Everybody, Hurried, loss_of
from mutants.harness import streams
from mutants.variants import Dataset, names_of
from support.recording import OperationRecorder
from support.tiny_models import VOCABULARY
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training import graphs as module
from taciturn.engine.training import loop
from taciturn.engine.training.batch import BatchLimits, microbatches
from taciturn.engine.training.graphs import NO_GRAPHS, CudaRecorder, Graphs, recorded, wants_graphs
from taciturn.engine.training.memory import random_batch
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import private_step
from taciturn.planning.optimizer import OptimizerConfig

CPU = torch.device("cpu")
LIMITS = BatchLimits(64, 3, 32)
SHAPES = [(LIMITS.units_of(width, 1), width) for width in LIMITS.widths]
# Of one record each, one too long for a microbatch of three, some in several microbatches.
RECORDS = [[5], [9], [16], [7], [31], [12], [4], [6], [20], [28], [3], [26]]
KINDS = [
    ("llama", "lora"),
    ("llama-tied", "full"),
    ("gpt2", "lora"),
    ("gpt2", "full"),
    ("qwen3", "lora"),
    ("qwen3", "full"),
    ("gemma3", "lora"),
    ("gemma3", "full"),
]


def recorded_of(loss: nn.Module, form: Form = Form.AUTO) -> Graphs:
    return recorded(loss, VOCABULARY, SHAPES, form, OperationRecorder())


def fitted(
    loss: nn.Module,
    form: Form,
    graphs: Graphs,
    *,
    units: Sequence[Sequence[int]] = RECORDS,
    mechanism: type[DpSgdMechanism] = Everybody,
) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights after three private steps on fixed streams, and the counts of each."""
    config = OptimizerConfig(0.05, 100, decay=False)
    state = TrainingState(trainable_parameters(loss), config, private=True)
    made = mechanism(16, 4, 3, 1.0, 0.25, names_of(loss))
    keys, data = streams(1), Dataset([list(unit) for unit in units])
    arguments: Any = (loss, data, made, state, keys, LIMITS, form, ALONE, graphs)
    counts = [private_step(*arguments) for _ in range(3)]
    return {name: value.detach().clone() for name, value in state.parameters.items()}, counts


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "method"), KINDS)
def test_a_fit_from_recordings_is_the_same_bit_for_bit(
    name: str, method: str, checkpointing: bool
) -> None:
    """Whatever the rows, after weights have changed, with fillers, and nothing waits."""
    for form in Form:
        loss = loss_of(name, method, checkpointing=checkpointing)
        other = copy.deepcopy(loss)
        graphs = recorded_of(loss, form)
        assert sorted(graphs.recordings) == sorted(SHAPES)
        own, own_counts = fitted(loss, form, graphs, mechanism=Hurried)
        expected, counts = fitted(other, form, NO_GRAPHS)
        assert own_counts == counts
        for key, value in expected.items():
            assert torch.equal(own[key], value), key


def test_all_of_a_step_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test before would compare nothing."""
    loss = loss_of("llama", "lora")
    graphs = recorded_of(loss)

    def computed(*_: object) -> None:
        raise AssertionError("not from a recording")

    monkeypatch.setattr("taciturn.engine.training.step.sum_parts", computed)
    fitted(loss, Form.AUTO, graphs)
    with pytest.raises(AssertionError, match="not from a recording"):
        fitted(loss, Form.AUTO, graphs, units=[[5, 6]])


def test_what_was_not_recorded_is_computed() -> None:
    """Several records of a unit, other shapes, parts, another form."""
    loss = loss_of("llama", "lora")
    graphs = recorded_of(loss)
    units = [*RECORDS, [5, 6], [30, 30, 30], [9, 3]]
    other = copy.deepcopy(loss)
    own, counts = fitted(loss, Form.AUTO, graphs, units=units)
    expected, expected_counts = fitted(other, Form.AUTO, NO_GRAPHS, units=units)
    assert counts == expected_counts
    assert all(torch.equal(own[key], value) for key, value in expected.items())
    (group,) = list(microbatches(Any_of([[5], [6], [7]]), _first(3), LIMITS))
    assert graphs.gradients(group, Form.AUTO) is not None
    assert graphs.gradients(group, Form.INSTANTIATE) is None
    assert graphs.gradients((*group, *group), Form.AUTO) is None


def Any_of(units: list[list[int]]) -> Any:
    return Dataset(units)


def _first(count: int) -> Any:
    return torch.arange(count).numpy()


def test_rows_in_another_order_are_not_taken_for_units() -> None:
    loss = loss_of("llama", "lora")
    graphs = recorded_of(loss)
    units, width = SHAPES[0]
    batch = random_batch(VOCABULARY, units, width, CPU)
    assert graphs.gradients((batch,), Form.AUTO) is not None
    swapped = UnitBatch(
        batch.input_ids_BT, batch.loss_weights_BT, torch.tensor([1, 0, 2]), batch.n_units
    )
    assert graphs.gradients((swapped,), Form.AUTO) is None


def test_recordings_of_weights_that_were_moved_are_not_used() -> None:
    loss = loss_of("llama", "lora")
    graphs = recorded_of(loss)
    assert graphs.of(loss) is graphs
    for value in loss.parameters():
        value.data = value.data.clone()
    assert not graphs.of(loss).recordings
    own, _ = fitted(loss, Form.AUTO, graphs)
    expected, _ = fitted(loss_of("llama", "lora"), Form.AUTO, NO_GRAPHS)
    assert all(torch.equal(own[key], value) for key, value in expected.items())


class Counting(CausalLmLoss):
    """A number of Python's is part of the loss: a recording would repeat it."""

    calls = 0

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        self.calls += 1
        return super().forward(batch) * (1 + self.calls)


class Remembering(CausalLmLoss):
    """Weights are multiplied before they are known, and kept."""

    kept: Tensor | None = None

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        scale = next(iter(trainable_parameters(self.model).values())).detach().sum().cos()
        fresh = torch._C._get_tracing_state() is None and self.kept is not None
        self.kept = scale if self.kept is None or not fresh else self.kept
        return super().forward(batch) * self.kept


class Choosing(CausalLmLoss):
    """Python decides by the rows, without asking the device."""

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        return super().forward(batch) * (1 + batch.input_ids_BT.numpy()[0, 0] % 7)


class Waiting(CausalLmLoss):
    """Python asks the device."""

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        return super().forward(batch) * (1 + batch.input_ids_BT[0, 0].item() % 7)


class Replacing(CausalLmLoss):
    """A buffer is another one after each call."""

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        self.register_buffer("seen", torch.ones(3), persistent=False)
        return super().forward(batch)


class Dropping(CausalLmLoss):
    """Random numbers in the forward pass."""

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        return super().forward(batch) * torch.rand(())


def refused(kind: type[CausalLmLoss], reason: str) -> None:
    loss = kind(loss_of("llama", "lora").model)
    with pytest.warns(UserWarning, match=f"without CUDA graphs.*{reason}"):
        graphs = recorded_of(loss)
    assert not graphs.recordings
    assert reason.replace(".*", "") in str(graphs) or reason in str(graphs)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, "other gradients"),
        (Choosing, "other gradients"),
        (Waiting, "waits for the device"),
        (Replacing, "replaces its own"),
        (Dropping, "random numbers"),
    ],
)
def test_what_a_replay_would_get_wrong_is_refused(kind: type[CausalLmLoss], reason: str) -> None:
    refused(kind, reason)
