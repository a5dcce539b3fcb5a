"""Processes in step: as many forward passes on each, whatever its share of the units.

A sharded model needs every process for each forward and backward pass. A process with fewer
microbatches than others runs a public one and drops the result: nothing of it enters a sum, so
sensitivity is not doubled, as it is by a made-up record that fills an empty batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from taciturn.engine.model.sharding import is_sharded
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training.processes import together

Group = tuple[UnitBatch, ...]


def in_step(
    loss: nn.Module,
    groups: Iterable[Group],
    ranks: Ranks,
    idle: Callable[[nn.Module, UnitBatch], object],
) -> Iterator[Group]:
    """The groups as they are; with a sharded model, followed by idle passes up to the others'.

    Args:
        idle: a forward and backward pass like those of the groups; its result is dropped.
    """
    if not is_sharded(loss):
        yield from groups
        return
    own_groups = list(groups)
    passes = sum(len(group) for group in own_groups)
    most = max(int(row[0]) for row in ranks.numbers([passes]))
    yield from own_groups
    device = next(loss.parameters()).device
    for _ in range(most - passes):
        idle(loss, _public_batch().to(device))


def _public_batch() -> UnitBatch:
    ids_BT = torch.zeros(1, 2, dtype=torch.int64)
    return UnitBatch(ids_BT, torch.tensor([[0.0, 1.0]]), torch.zeros(1, dtype=torch.int64), 1)


def add_nothing(loss: nn.Module, batch: UnitBatch) -> None:
    """An ordinary forward and backward pass that adds zero to every gradient."""
    (0.0 * loss(batch).sum()).backward()


def failing_together(loss: nn.Module, ranks: Ranks) -> AbstractContextManager[None]:
    """Let one process's failure be every process's, as `processes.together` does.

    With a sharded model the others wait inside a layer, where no word reaches them; there the
    failed process ends at once, and they see its connection break.
    """
    return nullcontext() if is_sharded(loss) else together(ranks)


def take_gradients(parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> dict[str, Tensor]:
    """Return each parameter's gradient summed over all processes, of sharded ones the own rows;
    and clear it.

    A parameter that no process used has gradient zero.
    """
    gradients = {name: _take(value) for name, value in parameters.items()}
    sharded = {name for name, value in parameters.items() if isinstance(value, DTensor)}
    replicated = {name: value for name, value in gradients.items() if name not in sharded}
    shapes = {name: value.shape for name, value in replicated.items()}
    whole = ranks.whole(ranks.sum_rows(replicated), shapes)
    # FSDP has taken the mean over processes already.
    return {
        name: gradients[name] * ranks.size if name in sharded else whole[name] for name in gradients
    }


def _take(parameter: nn.Parameter) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient.detach()
