"""Recorded microbatches: the same bits as computed ones, on any rows and weights, or none at all.

The CPU's operations are repeated as a CUDA graph repeats kernels (`support/recording.py`).
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from taciturn.engine.model.dropout import disable_dropout
from taciturn.engine.model.load import enable_checkpointing
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.preference import PreferenceLoss
from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.engine.training import graphs as module
from taciturn.engine.training import loop
from taciturn.engine.training.batch import BatchLimits, Shape
from taciturn.engine.training.graphs import NO_GRAPHS, CudaRecorder, Graphs, recorded, wants_graphs
from taciturn.engine.training.memory import random_batch
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import private_step
from taciturn.planning.optimizer import OptimizerConfig
from taciturn.spec import FitSpec

CPU = torch.device("cpu")
LIMITS = BatchLimits(48, 3, 20)
SHAPES = LIMITS.shapes()
# Of one record each; microbatches of both shapes, some of them with fillers.
RECORDS = [[5], [9], [16], [7], [20], [12], [4], [18], [6]]
SEVERAL = BatchLimits(128, 8, 20, places=8)
# Of one to three records each; more of one size than a microbatch has places for, and fewer.
UNITS = [[5], [16, 9], [20, 3], [7, 4, 11], [8, 8], [18], [6, 6], [12, 10], [9, 2], [5, 5, 20]]
KINDS = [
    ("llama", "lora", True),
    ("llama-tied", "full", False),
    ("gpt2", "lora", False),
    ("gpt2", "full", True),
    ("qwen3", "lora", False),
    ("qwen3", "full", False),
    ("gemma3", "lora", False),
    ("gemma3", "full", True),
]


def recorded_of(
    loss: nn.Module, form: Form = Form.AUTO, shapes: Sequence[Shape] = SHAPES
) -> Graphs:
    return recorded(loss, VOCABULARY, shapes, form, OperationRecorder())


def fitted(
    loss: nn.Module,
    form: Form,
    graphs: Graphs,
    *,
    units: Sequence[Sequence[int]] = RECORDS,
    mechanism: type[DpSgdMechanism] = Everybody,
    limits: BatchLimits = LIMITS,
) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights after two private steps on fixed streams, and the counts of each."""
    config = OptimizerConfig(0.05, 100, decay=False)
    state = TrainingState(trainable_parameters(loss), config, private=True)
    made = mechanism(16, 4, 2, 1.0, 0.25, names_of(loss))
    keys, data = streams(1), Dataset([list(unit) for unit in units])
    arguments: Any = (loss, data, made, state, keys, limits, form, ALONE, graphs)
    counts = [private_step(*arguments) for _ in range(2)]
    return {name: value.detach().clone() for name, value in state.parameters.items()}, counts


@pytest.mark.parametrize(("name", "method", "checkpointing"), KINDS)
def test_a_fit_from_recordings_is_the_same_bit_for_bit(
    name: str, method: str, checkpointing: bool
) -> None:
    """Whatever the rows, after weights have changed, with fillers, and nothing waits."""
    for form in Form:
        loss = loss_of(name, method)
        if checkpointing:
            disable_dropout(loss)
            enable_checkpointing(loss.model)
        other = copy.deepcopy(loss)
        graphs = recorded_of(loss, form)
        assert sorted(graphs.recordings) == sorted(SHAPES)
        own, own_counts = fitted(loss, form, graphs, mechanism=Hurried)
        expected, counts = fitted(other, form, NO_GRAPHS)
        assert own_counts == counts
        for key, value in expected.items():
            assert torch.equal(own[key], value), key


@pytest.mark.parametrize(("name", "method", "checkpointing"), KINDS[::3])
def test_units_of_several_records_are_replayed_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str, checkpointing: bool
) -> None:
    """Each microbatch of a step comes from a recording, and every bit is what it was without."""
    shapes = SEVERAL.shapes(3)
    assert {shape[1] for shape in shapes} == {1, 2, 3}
    assert max(shape[0] for shape in shapes if shape[1] > 1) > 1
    loss = loss_of(name, method)
    if checkpointing:
        disable_dropout(loss)
        enable_checkpointing(loss.model)
    other = copy.deepcopy(loss)
    graphs = recorded_of(loss, shapes=shapes)
    assert sorted(graphs.recordings) == sorted(shapes)
    expected, counts = fitted(other, Form.AUTO, NO_GRAPHS, units=UNITS, limits=SEVERAL)
    monkeypatch.setattr("taciturn.engine.training.step.sum_parts", _not_recorded)
    own, own_counts = fitted(
        loss, Form.AUTO, graphs, units=UNITS, mechanism=Hurried, limits=SEVERAL
    )
    assert own_counts == counts
    assert all(torch.equal(own[key], value) for key, value in expected.items())


def _not_recorded(*_: object) -> None:
    raise AssertionError("not from a recording")


@pytest.mark.parametrize("form", list(Form))
def test_a_unit_of_several_records_is_replayed_the_same_alone_and_in_company(form: Form) -> None:
    """From and into the same memory, with the same sums, norms and losses."""
    loss, shape = loss_of("llama", "lora"), (4, 3, 16)
    graphs = recorded_of(loss, form, [shape])
    batch = random_batch(VOCABULARY, 4, 16, CPU, records=3)
    alone = replace(
        batch,
        input_ids_BT=batch.input_ids_BT.clone(),
        loss_weights_BT=batch.loss_weights_BT.clone(),
    )
    alone.input_ids_BT[3:] = 0
    alone.loss_weights_BT[3:] = 0.0
    alone = replace(alone, n_fillers=3)
    places, sums = [], []
    for rows in (batch, alone, batch):
        gradients = graphs.gradients((rows,), form)
        assert gradients is not None
        assert gradients.n_fillers == rows.n_fillers
        read = graphs.recordings[shape].batch
        tensors = [read.input_ids_BT, read.loss_weights_BT, *_tensors_of(gradients)]
        places.append([tensor.data_ptr() for tensor in tensors])
        own = [value[0].clone() for value in gradients.dense().values()]
        sums.append((own, gradients.losses_U[0].clone(), clip_and_sum(gradients, 0.1)))
        computed = clip_and_sum(per_example_gradients(loss, rows, form), 0.1)
        for key, value in computed.values.items():
            assert torch.equal(sums[-1][2].values[key], value), key
        assert all(map(torch.equal, sums[-1][2].tally.unread, computed.tally.unread))
    assert places[0] == places[1] == places[2]
    (own, loss_of_unit, whole), (lonely, loss_alone, by_itself), (_, _, again) = sums
    assert all(map(torch.equal, own, lonely))
    assert torch.equal(loss_of_unit, loss_alone)
    assert torch.equal(whole.tally.unread[0][:, 0], by_itself.tally.unread[0][:, 0])
    assert all(torch.equal(again.values[key], value) for key, value in whole.values.items())
    assert not all(torch.equal(by_itself.values[key], whole.values[key]) for key in whole.values)


def _tensors_of(gradients: PerUnitGradients) -> list[Tensor]:
    tensors = [gradients.losses_U]
    for value in gradients.values.values():
        terms = value.terms if isinstance(value, FactoredGradients) else ()
        tensors += [value] if isinstance(value, Tensor) else []
        tensors += [side for term in terms for side in (term.left, term.right_BRD)]
    return tensors


def test_preferences_are_recorded_too() -> None:
    """Their loss switches adapters off and on."""
    loss = PreferenceLoss(loss_of("llama", "lora").model, 0.1)
    other = copy.deepcopy(loss)
    own, counts = fitted(loss, Form.AUTO, recorded_of(loss), mechanism=Hurried)
    expected, expected_counts = fitted(other, Form.AUTO, NO_GRAPHS)
    assert counts == expected_counts
    assert all(torch.equal(own[key], value) for key, value in expected.items())


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
    drawn = [*RECORDS, [5, 6], [20, 20, 20], [9, 3]]
    other = copy.deepcopy(loss)
    own, counts = fitted(loss, Form.AUTO, graphs, units=drawn)
    expected, expected_counts = fitted(other, Form.AUTO, NO_GRAPHS, units=drawn)
    assert counts == expected_counts
    assert all(torch.equal(own[key], value) for key, value in expected.items())
    units, _, width = SHAPES[0]
    group = (random_batch(VOCABULARY, units, width, CPU),)
    assert graphs.gradients(group, Form.AUTO) is not None
    assert graphs.gradients(group, Form.INSTANTIATE) is None
    assert graphs.gradients((*group, *group), Form.AUTO) is None


def test_rows_in_another_order_are_not_taken_for_units() -> None:
    loss = loss_of("llama", "lora")
    graphs = recorded_of(loss)
    units, _, width = SHAPES[0]
    batch = random_batch(VOCABULARY, units, width, CPU)
    assert graphs.gradients((batch,), Form.AUTO) is not None
    swapped = UnitBatch(
        batch.input_ids_BT, batch.loss_weights_BT, torch.tensor([1, 0, 2]), batch.n_units
    )
    assert graphs.gradients((swapped,), Form.AUTO) is None
    several = recorded_of(loss, shapes=[(2, 2, 16)])
    batch = random_batch(VOCABULARY, 2, 16, CPU, records=2)
    assert several.gradients((batch,), Form.AUTO) is not None
    for unit_of_B in ([0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]):
        swapped = replace(batch, unit_of_B=torch.tensor(unit_of_B), laid_out=None)
        assert several.gradients((swapped,), Form.AUTO) is None
    one_each = random_batch(VOCABULARY, 4, 16, CPU)
    assert several.gradients((one_each,), Form.AUTO) is None


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
    assert reason in str(graphs)


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


def plan_of(**fields: Any) -> Any:
    adapter = SimpleNamespace(method=fields.pop("method", "lora"))
    usual = {"privacy": object(), "steps": 100, "batch_size": 4}
    usual |= {"max_tokens": 20, "record_tokens": 20}
    return SimpleNamespace(**usual | fields, adapter=adapter)


@pytest.mark.parametrize(
    ("choice", "fields", "unit", "wanted"),
    [
        (None, {}, None, True),
        (None, {"steps": 99}, None, False),
        (None, {"method": "full"}, None, False),
        (None, {"privacy": None}, None, False),
        (None, {}, ("patient", 1), True),
        (None, {}, ("patient", 2), False),
        (None, {"steps": 199}, ("patient", 2), False),
        (None, {"steps": 200}, ("patient", 2), True),
        (None, {"steps": 599}, ("patient", 8), False),
        (None, {"steps": 600}, ("patient", 8), True),
        (True, {"steps": 1}, None, True),
        (True, {"method": "full"}, None, True),
        (True, {}, ("patient", 2), True),
        (False, {}, None, False),
    ],
)
def test_recordings_are_wanted_where_they_pay(
    monkeypatch: pytest.MonkeyPatch,
    choice: bool | None,
    fields: dict[str, Any],
    unit: tuple[str, int] | None,
    wanted: bool,
) -> None:
    loss, spec = loss_of("llama", "lora"), FitSpec(target_epsilon=3, cuda_graphs=choice)
    if unit is not None:
        name, most = unit
        spec = spec.model_copy(update={"privacy_unit": name, "max_records_per_unit": most})
    assert not wants_graphs(spec, plan_of(**fields), loss)  # no GPU
    monkeypatch.setattr(module, "recorder_of", lambda device: OperationRecorder())
    assert wants_graphs(spec, plan_of(**fields), loss) is wanted


@pytest.mark.parametrize("sharded", [False, True])
def test_what_cannot_be_recorded_is_said(monkeypatch: pytest.MonkeyPatch, sharded: bool) -> None:
    loss, spec = loss_of("llama", "lora"), FitSpec(target_epsilon=3, cuda_graphs=True)
    monkeypatch.setattr(module, "recorder_of", lambda device: OperationRecorder())
    monkeypatch.setattr(module, "is_sharded", lambda loss: sharded)
    plan = plan_of() if sharded else plan_of(privacy=None)
    reason = "sharded model's kernels" if sharded else "without privacy"
    with pytest.warns(UserWarning, match=f"cuda_graphs=True is not followed: .*{reason}"):
        assert not wants_graphs(spec, plan, loss)
    assert not wants_graphs(spec.model_copy(update={"cuda_graphs": None}), plan, loss)


def run_of(loss: nn.Module, records: int = 1) -> Any:
    fields = {
        "plan": plan_of(),
        "vocabulary": VOCABULARY,
        "microbatch_tokens": 48,
        "records": records,
    }
    return SimpleNamespace(loss=loss, form=Form.AUTO, ranks=ALONE, graphs=True, **fields)


def prepared(
    patch: pytest.MonkeyPatch, loss: nn.Module, records: int = 1
) -> tuple[BatchLimits, Graphs]:
    for place in (module, loop):
        patch.setattr(place, "recorder_of", lambda device: OperationRecorder())
    patch.setattr(loop, "free_tokens", lambda loss: 160)
    return loop._prepared(run_of(loss, records))


@pytest.mark.parametrize("records", [1, 3])
def test_a_run_records_all_its_shapes(monkeypatch: pytest.MonkeyPatch, records: int) -> None:
    """Of fewer places: what fills a microbatch up to the time of its start is less."""
    limits, graphs = prepared(monkeypatch, loss_of("llama", "lora"), records)
    assert limits.free_tokens == 20
    shapes = {
        (limits.units_of(width, count), count, width)
        for width in limits.widths
        for count in range(1, records + 1)
        if count * width <= 48
    }
    assert set(graphs.recordings) == shapes
    assert str(graphs) == f"CUDA graphs of {len(shapes)} shapes of microbatches"


def test_a_run_without_recordings_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Counting(loss_of("llama", "lora").model)
    monkeypatch.setattr(loop, "same_in_company", lambda *_, **__: True)
    with pytest.warns(UserWarning, match="other gradients"):
        limits, graphs = prepared(monkeypatch, loss)
    assert (limits.free_tokens, limits.units > 1) == (160, True)
    assert not graphs.recordings
    monkeypatch.setattr(loop, "same_in_company", lambda *_, **__: False)
    limits, graphs = prepared(monkeypatch, loss)
    assert limits.units == 1
    assert str(graphs) == "no CUDA graphs: units are computed one by one"


class Driver:
    """As much of torch.cuda as the recorder calls, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.debug: Any = "default"
        self.stream = "own"
        waiting = SimpleNamespace(wait_stream=lambda other: None, device_index=0)
        for name, stand_in in {
            "Stream": lambda device: waiting,
            "current_stream": lambda device: waiting,
            "graph_pool_handle": lambda: (0, 1),
            "synchronize": lambda device: self.calls.append("synchronize"),
            "empty_cache": lambda: self.calls.append("empty_cache"),
            "get_sync_debug_mode": lambda: self.debug,
            "set_sync_debug_mode": lambda mode: setattr(self, "debug", mode),
            "stream": self.on,
            "CUDAGraph": lambda: self,
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        ended = lambda index, pool: self.calls.append(f"end {pool}")  # noqa: E731
        patch.setattr(torch._C, "_cuda_endAllocateToPool", ended, raising=False)

    @contextmanager
    def on(self, stream: object) -> Iterator[None]:
        """torch.cuda.stream"""
        self.stream = "side"
        try:
            yield
        finally:
            self.stream = "own"

    def capture_begin(self, pool: object) -> None:
        """CUDAGraph.capture_begin"""
        self.calls.append(f"begin {pool}")

    def capture_end(self) -> None:
        """CUDAGraph.capture_end; fails where the driver gave up."""
        self.calls.append("capture_end")
        if "gave up" in self.calls:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        """CUDAGraph.replay"""
        self.calls.append("replay")


def test_a_gpu_records_on_its_own_stream_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)

    def compute() -> Any:
        collected = "" if gc.isenabled() else ", no garbage"
        driver.calls.append(f"compute on {driver.stream}, {driver.debug}{collected}")
        return "gradients"

    gradients, replay = CudaRecorder(torch.device("cuda:0")).record(compute)
    replay()
    assert (gradients, driver.stream, driver.debug, gc.isenabled()) == (
        "gradients",
        "own",
        "default",
        True,
    )
    assert driver.calls == [
        "compute on side, default",
        "compute on side, error",
        "synchronize",
        "empty_cache",
        "begin (0, 1)",
        "compute on side, default, no garbage",
        "capture_end",
        "replay",
    ]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("gives_up", [False, True])
def test_a_recording_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, fails_at: int, gives_up: bool
) -> None:
    driver, passes = Driver(monkeypatch), []

    def compute() -> Any:
        passes.append(driver.debug)
        if len(passes) == fails_at:
            driver.calls += ["gave up"] if gives_up else []
            raise ValueError("out of order")

    with pytest.raises((ValueError, RuntimeError)):
        CudaRecorder(torch.device("cuda:0")).record(compute)
    assert (driver.stream, driver.debug, gc.isenabled()) == ("own", "default", True)
    if fails_at == 3:
        assert driver.calls[-2:] == ["capture_end", "end (0, 1)"]
    else:
        assert "begin (0, 1)" not in driver.calls
