"""The processes of one job, seen from one of them: who reads which unit, who noises which row.

A rank is one process. Two rules make the guarantee independent of their number:

- every drawn unit is dealt to exactly one rank, so a unit moves the sum over all ranks by at most
  the clip norm, as it does in one process;
- every row of the sum is owned by exactly one rank, which adds the noise to it from a stream of
  its own. So each value gets noise once, however many ranks there are: noise that every rank
  adds has a scale that is wrong by a factor of sqrt(R).

Whatever the ranks send each other before the noise is as private as the rows.

Shapes: N rows of a parameter (its first dimension), K rows per rank, R ranks, S values.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from taciturn.errors import GuaranteeError

# Values that are sent at once: bounds the memory beside the sums to some 64 MiB of float64.
_BUCKET = 1 << 23


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process's view of the job; the default is a job of one process, which sends nothing.

    Every method is called by all ranks, in the same order.

    Attributes:
        rank: this process, from 0.
        size: number of processes, R.
        group: sends tensors where the model is; None without other processes.
        control: sends small tensors in the CPU's memory; None without other processes.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0: the one that draws, prints and writes."""
        return self.rank == 0

    def deal(
        self, drawn: NDArray[np.int64] | None, cost: Callable[[int], int]
    ) -> NDArray[np.int64]:
        """This rank's share of the units that rank 0 has drawn; an empty share is not filled up.

        Guarantee: each drawn unit is in the share of exactly one rank. Rank 0 alone decides which,
        and tells the others: with a draw on each rank, a unit could be in one step twice.

        Args:
            drawn: rank 0's Poisson draw; None on every other rank.
            cost: work of one unit, to deal evenly. It decides about speed only.

        Raises:
            GuaranteeError: a unit was drawn twice, or a rank other than 0 has drawn.
        """
        if (drawn is None) == self.first:
            raise GuaranteeError(
                f"rank {self.rank} must {'' if self.first else 'not '}draw: a step has one draw, "
                "and it is rank 0's"
            )
        if drawn is not None and len(np.unique(drawn)) != len(drawn):
            raise GuaranteeError("a unit was drawn twice in one step; a draw has each at most once")
        if drawn is not None and self.size == 1:
            return drawn
        owners = None if drawn is None else _owners(drawn, cost, self.size)
        table = None if drawn is None or owners is None else np.stack((drawn, owners))
        units, owner_of_units = self._from_first(table)
        mine: NDArray[np.int64] = units[owner_of_units == self.rank]
        return mine

    def _from_first(self, table: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Rank 0's [2, n] integers, everywhere."""
        width = torch.tensor([0 if table is None else table.shape[1]])
        dist.broadcast(width, group=self.control, group_src=0)
        shape = (2, int(width))
        out = torch.empty(shape, dtype=torch.int64) if table is None else torch.from_numpy(table)
        dist.broadcast(out, group=self.control, group_src=0)
        return out.numpy()

    def own_rows(self, rows: int) -> slice:
        """The rows of a parameter of `rows` rows that this rank owns; maybe none.

        Guarantee: each row is owned by exactly one rank. FSDP shards in the same way.
        """
        per_rank = -(-rows // self.size)
        return slice(min(rows, self.rank * per_rank), min(rows, (self.rank + 1) * per_rank))

    def sum_rows(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's own rows of the sum over all ranks.

        Args:
            values: parameter name -> [N, ...], the same names and shapes on every rank.

        Returns:
            parameter name -> [own rows, ...]; a scalar counts as one row.
        """
        if self.size == 1:
            return dict(values)
        out: dict[str, Tensor] = {}
        for names in _buckets({name: value.shape for name, value in values.items()}):
            sent_RS = torch.cat([self._by_owner(values[name]) for name in names], dim=1)
            own_S = sent_RS.new_empty(sent_RS.shape[1])
            _reduce_scatter(own_S, sent_RS.view(-1), self.group)
            shapes = {name: values[name].shape for name in names}
            out |= {
                name: part[self._kept(shapes[name])] for name, part in self._split(own_S, shapes)
            }
        return out

    def whole(
        self, own: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
    ) -> dict[str, Tensor]:
        """All rows of every parameter, from the ranks that own them; the same bits on every rank.

        Args:
            own: what `sum_rows` returns: parameter name -> [own rows, ...].
            shapes: of the whole parameters.
        """
        if self.size == 1:
            return dict(own)
        out: dict[str, Tensor] = {}
        for names in _buckets({name: shapes[name] for name in own}):
            own_S = torch.cat([self._padded(own[name], shapes[name]) for name in names])
            all_RS = own_S.new_empty(self.size, len(own_S))
            _all_gather(all_RS.view(-1), own_S, self.group)
            each = [self._split(part_S, {n: shapes[n] for n in names}) for part_S in all_RS]
            for parts in zip(*each, strict=True):
                name = parts[0][0]
                joined = torch.cat([part for _, part in parts])
                out[name] = joined[: _rows(shapes[name])].reshape(shapes[name])
        return out

    def numbers(self, values: list[float]) -> list[list[float]]:
        """Everybody's `values`, by rank; as many on every rank."""
        rows: list[list[float]] = self.everybody(torch.tensor(values, dtype=torch.float64)).tolist()
        return rows

    def everybody(self, own: Tensor) -> Tensor:
        """Everybody's small tensor [S], in the CPU's memory, by rank: [R, S]."""
        if self.size == 1:
            return own.unsqueeze(0)
        out_RS = own.new_empty(self.size, len(own))
        _all_gather(out_RS.view(-1), own, self.control)
        return out_RS

    def _per_rank(self, shape: torch.Size) -> int:
        return -(-_rows(shape) // self.size)

    def _kept(self, shape: torch.Size) -> slice:
        own = self.own_rows(_rows(shape))
        return slice(0, own.stop - own.start)

    def _by_owner(self, value: Tensor) -> Tensor:
        """[N, ...] -> [R, K * ...], the last ranks' rows filled up with zeros."""
        rows, per_rank = _rows(value.shape), self._per_rank(value.shape)
        flat_NM = value.reshape(rows, math.prod(value.shape[1:]))
        missing = self.size * per_rank - rows
        return torch.nn.functional.pad(flat_NM, (0, 0, 0, missing)).view(self.size, -1)

    def _padded(self, own: Tensor, shape: torch.Size) -> Tensor:
        missing = self._per_rank(shape) * math.prod(shape[1:]) - own.numel()
        return torch.nn.functional.pad(own.reshape(-1), (0, missing))

    def _split(
        self, flat_S: Tensor, shapes: Mapping[str, torch.Size]
    ) -> Iterator[tuple[str, Tensor]]:
        """One rank's values, by parameter: [K, ...]."""
        start = 0
        for name, shape in shapes.items():
            per_rank = self._per_rank(shape)
            stop = start + per_rank * math.prod(shape[1:])
            yield name, flat_S[start:stop].view(per_rank, *shape[1:])
            start = stop


ALONE = Ranks()
"""A job of one process."""


def _rows(shape: torch.Size) -> int:
    return shape[0] if shape else 1


def _owners(drawn: NDArray[np.int64], cost: Callable[[int], int], ranks: int) -> NDArray[np.int64]:
    """Longest first, always to the rank with the least work so far."""
    costs = np.array([cost(int(unit)) for unit in drawn], dtype=np.int64)
    owners = np.zeros(len(drawn), dtype=np.int64)
    work = [(0, rank) for rank in range(ranks)]
    for index in np.argsort(-costs, kind="stable"):
        least, owners[index] = heapq.heappop(work)
        heapq.heappush(work, (least + int(costs[index]), int(owners[index])))
    return owners


def _buckets(shapes: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """Names in order, some at a time: few messages, and little memory beside the values."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + math.prod(shape) > _BUCKET:
            yield names
            names, size = [], 0
        names.append(name)
        size += math.prod(shape)
    if names:
        yield names


def _reduce_scatter(out: Tensor, sent: Tensor, group: dist.ProcessGroup | None) -> None:
    # torch 2.13 gives these two operations other names and warns of the old ones.
    operation: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    operation(out, sent, group=group)


def _all_gather(out: Tensor, sent: Tensor, group: dist.ProcessGroup | None) -> None:
    operation: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    operation(out, sent, group=group)
