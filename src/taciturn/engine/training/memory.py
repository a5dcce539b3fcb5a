"""Memory that a run will need: what its tensors take, counted on small public microbatches.

Nothing about an architecture is assumed. Two microbatches of random public tokens run through the
very code that will train; the largest total of live tensors is a straight line in their tokens.
glibc's heap, as training uses it on CPUs, may hold on to more than that (bench/memory_model.py).
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.types import UnitBatch

STATE_BYTES = 3 * 4 + 8
"""Beside a microbatch, per trained weight: master copy and two moments (fp32), and the sum
(float64)."""
LAYER_START_S = 2.5e-3
"""Seconds to tell a GPU of one layer of a private microbatch; assumed, measured on no device."""
_FLOPS = 4e14
"""Operations a second, of an H200 in bf16 at 40% of its peak; assumed."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a run needs on its device.

    Attributes:
        weights: the model, trained or not.
        state: master weights, optimiser and the clipped sum.
        microbatch: activations and per-unit gradients of the largest microbatch.
    """

    weights: int
    state: int
    microbatch: int

    @property
    def total(self) -> int:
        """The peak, without the libraries themselves."""
        return self.weights + self.state + self.microbatch


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it while they live, and the largest total.

    Attributes:
        peak: the largest total so far.
    """

    def __init__(self, existing: list[Tensor]) -> None:
        """Count live bytes, but not those of `existing` tensors, which were there before."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._live: dict[int, Any] = {_key(tensor): None for tensor in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and _key(value) not in self._live:
                self._count(value)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        size = storage.nbytes()

        def forget(_: object) -> None:
            self._live.pop(key, None)
            self._now -= size

        self._live[key] = weakref.ref(storage, forget)
        self._now += size
        self.peak = max(self.peak, self._now)


def gradient_units(loss: nn.Module) -> int:
    """Units whose gradients of all that is trained may be kept at once; at least 1.

    4 bytes a number, in half a GiB; on a GPU, in a tenth of all of its memory.
    """
    device = next(loss.parameters()).device
    room = total_bytes(device) // 10 if device.type == "cuda" else 2**29
    return max(1, room // (4 * max(1, trained_numbers(loss))))


def trained_numbers(loss: nn.Module) -> int:
    """The number of numbers that are trained."""
    return sum(value.numel() for value in trainable_parameters(loss).values())


def free_tokens(loss: nn.Module) -> int:
    """Tokens that take no longer than one: as many as a GPU computes while it is told to.

    0 on a CPU. A GPU is told of one kernel after the other, and computes 6 operations for a token
    and weight. Layers and weights follow from one another in models of the usual proportions:
    P = 12 L h^2 with L = h / 100. Measured on no device: "starts of kernels" in bench/gpu.py does.
    """
    if next(loss.parameters()).device.type != "cuda":
        return 0
    weights = sum(value.numel() for value in loss.parameters())
    return int(LAYER_START_S * _FLOPS / (6 * 12) / math.pow(weights * 100 / 12, 2 / 3))


def memory_estimate(
    loss: nn.Module, small: UnitBatch, large: UnitBatch, tokens: int, form: Form, *, private: bool
) -> MemoryEstimate:
    """Memory that a run with microbatches of `tokens` tokens needs.

    Args:
        loss: as it will be trained.
        small, large: public batches of the expected length, `large` of more sequences.
    """
    weights = [*loss.parameters(), *loss.buffers()]
    few, many = (microbatch_peak(loss, batch, form, private=private) for batch in (small, large))
    few_tokens, many_tokens = small.input_ids_BT.numel(), large.input_ids_BT.numel()
    slope = max(0.0, (many - few) / max(1, many_tokens - few_tokens))
    return MemoryEstimate(
        weights=sum(weight.numel() * weight.element_size() for weight in weights),
        state=trained_numbers(loss) * STATE_BYTES,
        microbatch=round(many + slope * max(0, tokens - many_tokens)),
    )


def random_batch(
    vocabulary: int, units: int, width: int, device: torch.device, records: int = 1
) -> UnitBatch:
    """Public random tokens: units of `records` sequences each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (units * records, width), generator=generator)
    weights = torch.full((units * records, width), 1.0 / width)
    unit_of_B = torch.arange(units).repeat_interleave(records)
    return UnitBatch(ids, weights, unit_of_B, units).to(device)


def microbatch_peak(loss: nn.Module, batch: UnitBatch, form: Form, *, private: bool) -> int:
    """Most bytes that a microbatch takes at once: of its tensors, on a GPU as `measured_peak`."""
    if batch.input_ids_BT.device.type == "cuda":
        return measured_peak(loss, batch, form, private=private)
    existing = [*loss.parameters(), *loss.buffers(), batch.input_ids_BT, batch.loss_weights_BT]
    with LiveBytes(existing) as live:
        compute_microbatch(loss, batch, form, private=private)
    peak: int = live.peak
    return peak


def measured_peak(loss: nn.Module, batch: UnitBatch, form: Form, *, private: bool) -> int:
    """Bytes that a microbatch takes on a GPU, what kernels take for themselves included.

    PyTorch's allocator has counted them; its own statistics of a peak begin anew.
    """
    device = batch.input_ids_BT.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    compute_microbatch(loss, batch, form, private=private)
    return int(torch.cuda.max_memory_allocated(device)) - before


def compute_microbatch(loss: nn.Module, batch: UnitBatch, form: Form, *, private: bool) -> None:
    """Compute the clipped sum of a microbatch, or its plain gradient, and drop it."""
    if private:
        clip_and_sum(per_example_gradients(loss, batch, form), 1.0)
    else:
        parameters = list(trainable_parameters(loss).values())
        torch.autograd.grad(loss(batch).sum(), parameters)


def total_bytes(device: torch.device) -> int:
    """All memory of a GPU, free or not."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free on `device`, for PyTorch too; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Blocks that PyTorch keeps for its next tensors.
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(spare)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(lines["MemAvailable"].split()[0]) * 1024


def _key(tensor: Tensor) -> int:
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)
