"""A model whose weights are spread over the processes (FSDP2): each holds its rows of every matrix.

A layer's weights are put together just before its forward and backward pass and freed after them.
Rows that are trained are lifted (privacy/lifted.py) while they are whole: FSDP would otherwise put
the plain weight where the lifted one stood, and each unit's gradient would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.lifted import LiftedParameter
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import UnitBatch
from taciturn.errors import ModelError, SpecError, UnsupportedLayerError

Place = tuple[nn.Module, str]
"""Where a parameter hangs; a tied one hangs in several places."""


def is_sharded(model: nn.Module) -> bool:
    """True if every forward pass of `model` needs all processes.

    Its modules are asked first: within a step, lifted parameters stand where shards were. Without a
    process group, as in most jobs, none is asked, which is a hundredth of a small model's step.
    """
    if not dist.is_initialized():
        return False
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(value, DTensor) for value in model.parameters()
    )


def check_can_shard(model: nn.Module, processes: int) -> None:
    """Raise unless sharding makes sense for this model and this number of processes."""
    if processes == 1:
        raise SpecError(
            "sharding='full' spreads the model over several processes, and this job has one; "
            "start it with torchrun --nproc-per-node N, or leave sharding out"
        )
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "sharding='full' cannot spread a quantised base, whose weights are packed; leave out "
            "sharding or quantization"
        )


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Keep only this process's rows of every parameter, on `device`; layer by layer.

    Call it on the base model, before adapters are attached: they are small and stay whole. Every
    process calls it, with the same weights.
    """
    check_can_shard(model, processes)
    mesh = init_device_mesh(device.type, (processes,))
    lifted_at: dict[Place, LiftedParameter] = {}
    for module in [*_layers(model), model]:
        # Freed after forward even in the outermost module: nothing stale can survive an update.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # FSDP's own hook, which makes the weights whole, comes before those that are appended here.
    model.register_forward_pre_hook(_collect(model, lifted_at), prepend=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.register_forward_pre_hook(_lift_whole(list(_own_places(module)), lifted_at))
        elif module._parameters:
            # Checkpointing may run a layer again without that layer's own hooks.
            places = [(module, name) for name in module._parameters]
            module.register_forward_pre_hook(_lift_whole(places, lifted_at))
    _first_pass(model, device)


def gradient_norms(loss: nn.Module, batch: UnitBatch) -> Tensor:
    """Norms of per-unit gradients, in the CPU's memory: [forms * parameters, U].

    In both forms, one after the other; of factors, those of the gradients that they stand for.
    """
    rows_U: list[Tensor] = []
    for form in (Form.INSTANTIATE, Form.FACTORS):
        for value in per_example_gradients(loss, batch, form).values.values():
            dense = value if isinstance(value, Tensor) else value.dense()
            rows_U.append(dense.flatten(1).float().norm(dim=1).cpu())
    return torch.stack(rows_U)


def check_sharded(before: Tensor, after: Tensor) -> None:
    """Compare `gradient_norms` of the whole and the sharded model, before anything is spent.

    Raises:
        UnsupportedLayerError: a parameter's per-unit gradients are not what they were.
    """
    # Each form's rows hold a whole gradient.
    tolerance = 0.05 * before + 1e-3 * before.norm(dim=0) / 2**0.5
    if not bool(((after - before).abs() <= tolerance).all()):
        raise UnsupportedLayerError(
            "per-unit gradients of this model change when it is sharded: some layer uses its "
            "weights where FSDP does not put them together; leave out sharding='full'"
        )


def own_bytes(model: nn.Module) -> int:
    """Bytes of parameters that this process holds."""
    return sum(part.numel() * part.element_size() for part in map(local, model.parameters()))


def local(value: Tensor) -> Tensor:
    """The rows of a parameter that this process holds: all of them unless it is sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


@torch.no_grad()
def whole_state_dict(model: nn.Module, *, keep: bool) -> dict[str, Tensor] | None:
    """All weights, in the CPU's memory of those that `keep` them; every process calls it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wholes: dict[int, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        # A tied weight stays one tensor, so that it is saved once.
        key = id(parameters.get(name, value))
        if key not in wholes:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            wholes[key] = whole.cpu() if keep else whole.new_empty(0)
        out[name] = wholes[key]
    return out if keep else None


@torch.no_grad()
def _first_pass(model: nn.Module, device: torch.device) -> None:
    """FSDP looks for its shards in the first pass, and must find them and nothing lifted."""
    model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks: what is put together and freed at once."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    longest = max(lists, key=lambda layers: sum(value.numel() for value in layers.parameters()))
    return list(longest)


def _own_places(module: nn.Module) -> Iterator[Place]:
    """The places of parameters that `module` and no sharded module inside it puts together."""
    for name in module._parameters:
        yield module, name
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield from _own_places(child)


def _collect(model: nn.Module, lifted_at: dict[Place, LiftedParameter]) -> Callable[..., None]:
    """Return a hook that remembers at the start of each forward pass where lifted parameters stand.

    They are remembered until the next one, because checkpointing runs layers again in the backward
    pass, when FSDP has long put plain weights in their place.
    """
    places = [(module, name) for module in model.modules() for name in module._parameters]

    def hook(module: nn.Module, inputs: Any) -> None:
        lifted_at.clear()
        for owner, name in places:
            value = owner._parameters.get(name)
            if isinstance(value, LiftedParameter):
                lifted_at[owner, name] = value

    return hook


def _lift_whole(
    places: list[Place], lifted_at: dict[Place, LiftedParameter]
) -> Callable[..., None]:
    """Lift the weights that FSDP has just put together, in the places where they were lifted."""

    def hook(module: nn.Module, inputs: Any) -> None:
        for owner, name in places:
            lifted, whole = lifted_at.get((owner, name)), owner._parameters.get(name)
            if lifted is not None and isinstance(whole, nn.Parameter):
                # The parameter itself, not derived from it: its factors may be kept.
                again: Any = LiftedParameter.lift(whole, lifted.carrier, lifted.receiver)
                owner._parameters[name] = again

    return hook
