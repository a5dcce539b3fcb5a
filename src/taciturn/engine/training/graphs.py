"""A microbatch's gradients as a CUDA graph: what a GPU was told once, told again without Python.

A private microbatch is some thousand small kernels, and a GPU is often done with one before it is
told of the next. Shapes are few, constant and public, so the kernels of each are recorded once, on
public rows, and started together from there on (docs/design/gpus.md).

Recorded are forward and backward pass, up to the units' gradients. Norms, clipping, sums and noise
are computed as ever, by the same code from the recorded gradients: no recording can change what a
unit adds to a sum by more than the clip norm.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import contextlib
import gc
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from taciturn.engine.model.sharding import is_sharded
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.layout import copied
from taciturn.engine.privacy.per_example import per_example_gradients, with_fillers
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.engine.privacy.verification import same_replayed
from taciturn.engine.training.batch import Shape, padded_counts
from taciturn.engine.training.lockstep import Group
from taciturn.engine.training.memory import (
    STATE_BYTES,
    measured_peak,
    random_batch,
    total_bytes,
    trained_numbers,
)
from taciturn.planning.plan import TrainingPlan
from taciturn.spec import FitSpec

# To record and compare a shape takes as long as some twenty microbatches. A step has at least one
# for most padded lengths, whatever the number of records: so many steps for each such number.
_STEPS = 100
_WARM_UP = 2
# Part of a GPU's memory that stays free beside recordings, as in `microbatch.py`.
_RESERVE = 0.1


class Recorder(Protocol):
    """Records what a device is told."""

    def record(
        self, compute: Callable[[], PerUnitGradients]
    ) -> tuple[PerUnitGradients, Callable[[], None]]:
        """Return the result of `compute`, and a function that makes it again.

        It reads from the same addresses and writes to the same. Raises whatever keeps it from
        that, and leaves nothing behind.
        """


@dataclass(frozen=True, slots=True)
class Recording:
    """One shape's gradients.

    Attributes:
        batch: what they are computed from, on the device.
        gradients: where they are after `replay`, until the next replay of any recording.
    """

    batch: UnitBatch
    gradients: PerUnitGradients
    replay: Callable[[], None]

    def of(self, batch: UnitBatch) -> PerUnitGradients:
        """The gradients of another batch of this shape; the host does not wait for the device."""
        pairs = (
            (self.batch.input_ids_BT, batch.input_ids_BT),
            (self.batch.loss_weights_BT, batch.loss_weights_BT),
        )
        for own, other in pairs:
            own.copy_(copied(other, own.device))
        self.replay()
        return with_fillers(self.gradients, batch.n_fillers)


@dataclass(frozen=True, slots=True)
class Graphs:
    """The recordings of a run, by shape; without any, every microbatch is computed as ever.

    Attributes:
        form: of the gradients.
        addresses: where the model's parameters and buffers were, which is where recordings look.
        reason: why there are none, if somebody wanted some.
    """

    recordings: Mapping[Shape, Recording] = field(default_factory=dict)
    form: Form = Form.AUTO
    addresses: tuple[int, ...] = ()
    reason: str = ""

    def gradients(self, group: Group, form: Form) -> PerUnitGradients | None:
        """A group's gradients, if its shape was recorded in this form.

        They are overwritten by the next call: to be clipped and summed before it.
        """
        if len(group) != 1 or form is not self.form:
            return None
        (batch,) = group
        shape = _shape(batch)
        recording = None if shape is None else self.recordings.get(shape)
        return None if recording is None else recording.of(batch)

    def of(self, loss: nn.Module) -> Graphs:
        """Return the recordings, or none if the model's weights are elsewhere by now."""
        moved = bool(self.recordings) and self.addresses != _addresses(loss)
        return Graphs(reason="the model's weights were moved") if moved else self

    def __str__(self) -> str:
        if self.recordings:
            return f"CUDA graphs of {len(self.recordings)} shapes of microbatches"
        return f"no CUDA graphs: {self.reason or 'not asked for, or not worth it'}"


NO_GRAPHS = Graphs()


def wants_graphs(spec: FitSpec, plan: TrainingPlan, loss: nn.Module) -> bool:
    """Return whether recordings are asked for and may pay; from public facts alone.

    By default they are for LoRA, whose kernels are many and small, and for runs of 100 steps or
    more, times the numbers of sequences that a unit may be given. Where they are asked for and
    cannot be, a warning says so; on a device without recordings the setting does nothing.
    """
    if spec.cuda_graphs is False or recorder_of(next(loss.parameters()).device) is None:
        return False
    reason = "without privacy nothing is recorded" if plan.privacy is None else ""
    if is_sharded(loss):
        reason = "a sharded model's kernels wait for other processes"
    if reason and spec.cuda_graphs:
        warnings.warn(f"cuda_graphs=True is not followed: {reason}", stacklevel=2)
    if reason or spec.cuda_graphs:
        return not reason
    least = _STEPS * len(padded_counts(records_of(spec)))
    return plan.adapter.method == "lora" and plan.steps >= least


def records_of(spec: FitSpec) -> int:
    """Records of a unit, at most; without a privacy unit each record is one."""
    return 1 if spec.privacy_unit is None else spec.max_records_per_unit


def recorder_of(device: torch.device) -> Recorder | None:
    """The recorder of a device; None if it has none."""
    return CudaRecorder(device) if device.type == "cuda" else None


def recorded(
    loss: nn.Module, vocabulary: int, shapes: Sequence[Shape], form: Form, recorder: Recorder
) -> Graphs:
    """Record each shape on public rows, and compare with what is computed as ever, bit for bit.

    All or none: whatever goes wrong with one, there are no recordings, and a warning says why.
    """
    try:
        return _compared(loss, vocabulary, shapes, form, recorder)
    except Exception as error:  # of any class: a driver's, a layer's; nothing private is in it
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    # Here, where nothing holds on to the memory of those that were recorded.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(
        f"microbatches are computed without CUDA graphs, kernel by kernel: {reason}", stacklevel=2
    )
    return Graphs(reason=reason)


def _compared(
    loss: nn.Module, vocabulary: int, shapes: Sequence[Shape], form: Form, recorder: Recorder
) -> Graphs:
    recordings = {shape: _recording(loss, vocabulary, shape, form, recorder) for shape in shapes}
    # Once all are there: they share memory.
    for (units, records, width), recording in recordings.items():
        if not same_replayed(loss, vocabulary, (units, width), recording.of, form, records):
            raise RuntimeError(f"{units} units of {records} x {width} tokens get other gradients")
    _check_room(loss, vocabulary, shapes, form)
    return Graphs(recordings, form, _addresses(loss))


def _check_room(loss: nn.Module, vocabulary: int, shapes: Sequence[Shape], form: Form) -> None:
    """Raise unless a GPU has room, beside the recordings, for what is computed as ever."""
    device = next(loss.parameters()).device
    if device.type != "cuda":
        return
    largest = max(
        measured_peak(loss, _random(vocabulary, shape, device), form, private=True)
        for shape in {max(shapes), max(shapes, key=math.prod)}  # most units, most tokens
    )
    # What is still reserved afterwards belongs to the recordings.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    least = largest + trained_numbers(loss) * STATE_BYTES + _RESERVE * total_bytes(device)
    if free < least:
        raise RuntimeError(f"{free / 1e9:.1f} GB are free beside them, {least / 1e9:.1f} needed")


def _recording(
    loss: nn.Module, vocabulary: int, shape: Shape, form: Form, recorder: Recorder
) -> Recording:
    batch = _random(vocabulary, shape, next(loss.parameters()).device)
    compute = partial(per_example_gradients, loss, batch, form)
    before = _random_state(batch)
    for _ in range(_WARM_UP):  # what a first call sets up is there from here on
        compute()
    if not all(map(torch.equal, before, _random_state(batch))):
        raise RuntimeError("the model draws random numbers, which a recording would repeat")
    places = _addresses(loss)
    gradients, replay = recorder.record(compute)
    if places != _addresses(loss):
        raise RuntimeError("the model replaces its own weights or buffers")
    return Recording(batch, gradients, replay)


def _random(vocabulary: int, shape: Shape, device: torch.device) -> UnitBatch:
    units, records, width = shape
    return random_batch(vocabulary, units, width, device, records)


def _shape(batch: UnitBatch) -> Shape | None:
    """The shape of a batch whose units have as many sequences each, side by side and in order."""
    units_B = batch.unit_of_B.numpy()  # of the CPU, where groups are made
    records = len(units_B) // max(1, batch.n_units)
    if not np.array_equal(units_B, np.arange(batch.n_units).repeat(records)):
        return None
    return batch.n_units, records, batch.input_ids_BT.shape[1]


def _random_state(batch: UnitBatch) -> list[Tensor]:
    device = batch.input_ids_BT.device
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def _addresses(loss: nn.Module) -> tuple[int, ...]:
    return tuple(value.data_ptr() for value in (*loss.parameters(), *loss.buffers()))


class CudaRecorder:
    """Records CUDA graphs, which share one stream and one pool of memory.

    A graph may write wherever another one does: what one has computed is used up before the next
    is started, in whatever order they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(
        self, compute: Callable[[], PerUnitGradients]
    ) -> tuple[PerUnitGradients, Callable[[], None]]:
        """See Recorder. What waits for the device is refused before anything is recorded."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            compute()  # cuBLAS gets its workspace for this stream
            self._refuse_waiting(compute)
        usual.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        # Garbage must not be collected meanwhile, and memory of the passes before is wanted.
        gc.collect()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph, which stays on its stream where a recording fails.
        with torch.cuda.stream(self._stream):
            gradients = self._captured(graph, compute)
        return gradients, graph.replay

    def _captured(
        self, graph: torch.cuda.CUDAGraph, compute: Callable[[], PerUnitGradients]
    ) -> PerUnitGradients:
        collecting = gc.isenabled()
        gc.disable()
        try:
            graph.capture_begin(pool=self._pool)
            try:
                gradients = compute()
            finally:
                graph.capture_end()
        except BaseException:
            # Where the driver gave up, PyTorch would go on taking memory from the pool.
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            raise
        finally:
            if collecting:
                gc.enable()
        return gradients

    def _refuse_waiting(self, compute: Callable[[], PerUnitGradients]) -> None:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            compute()
        finally:
            torch.cuda.set_sync_debug_mode(before)
