"""One DP-SGD step, in the order of the paper (Abadi et al. 2016, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients, sum_parts
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import ClipCounts, PerUnitGradients
from taciturn.engine.training.batch import BatchLimits, alone, microbatches
from taciturn.engine.training.graphs import NO_GRAPHS, Graphs
from taciturn.engine.training.lockstep import (
    Group,
    add_nothing,
    failing_together,
    in_step,
    take_gradients,
)
from taciturn.engine.training.state import TrainingState


@dataclass(frozen=True, slots=True)
class Streams:
    """The two secret streams of one process: which units, and the noise on their sum."""

    sampling: SecureStream
    noise: SecureStream

    @classmethod
    def fresh(cls) -> Streams:
        """New keys from the operating system; a resumed run gets new ones too."""
        return cls(SecureStream.fresh(), SecureStream.fresh())


def private_step(
    loss: nn.Module,
    dataset: TokenizedDataset,
    mechanism: DpSgdMechanism,
    state: TrainingState,
    streams: Streams,
    limits: BatchLimits,
    form: Form = Form.AUTO,
    ranks: Ranks = ALONE,
    graphs: Graphs = NO_GRAPHS,
) -> ClipCounts:
    """Sample units, clip each one's gradient, add noise to the sum, update. Once per step.

    With several processes each does this for its own share of one draw, and adds the noise to its
    own rows of the sum; alone, both are all there is.

    Returns:
        Private counts for the owner's eyes; nothing of the update depends on them.
    """
    sampled = mechanism.sample(streams.sampling, dataset.n_units) if ranks.first else None
    units = ranks.deal(sampled, lambda unit: sum(dataset.lengths(unit)))
    groups = partial(microbatches, dataset, units, limits)
    gradients = partial(_gradients, loss, state.device, ranks, graphs.of(loss))
    with failing_together(loss, ranks):
        most = mechanism.clip_and_sum(state.parameters, gradients(groups(), form))
        own = mechanism.settle(
            most, lambda missing: gradients(alone(groups(), missing), Form.INSTANTIATE)
        )
    total = mechanism.sum_over_ranks(own, ranks)
    private = mechanism.add_noise(total, streams.noise)
    state.apply(mechanism.on_every_rank(private, state.parameters, ranks))
    return total.counts


def _gradients(
    loss: nn.Module,
    device: torch.device,
    ranks: Ranks,
    graphs: Graphs,
    groups: Iterable[Group],
    form: Form,
) -> Iterator[PerUnitGradients]:
    """Each group's gradients, to be used up before the next.

    Nothing here waits for the device: while it computes one group, the host makes, sends and
    launches the next.
    """
    idle = partial(per_example_gradients, form=form)
    for group in in_step(loss, groups, ranks, idle):
        replayed = graphs.gradients(group, form)
        yield replayed or sum_parts(loss, [part.to(device) for part in group], form)


def ordinary_step(
    loss: nn.Module,
    dataset: TokenizedDataset,
    units: NDArray[np.int64],
    state: TrainingState,
    limits: BatchLimits,
    ranks: Ranks = ALONE,
) -> ClipCounts:
    """One step without any privacy, for `target_epsilon="unlimited"`: the plain mean gradient.

    Args:
        units: the step's share of a shuffled epoch, the same on every rank.
    """
    own_units = ranks.deal(units if ranks.first else None, lambda unit: sum(dataset.lengths(unit)))
    losses: list[Tensor] = []
    n_records = 0
    with failing_together(loss, ranks):
        for group in in_step(loss, microbatches(dataset, own_units, limits), ranks, add_nothing):
            for part in group:
                losses_B = loss(part.to(state.device))
                losses_B.sum().backward()
                losses.append(losses_B.detach().sum())
                n_records += part.records
    own_sum = float(torch.stack(losses).cpu().double().sum()) if losses else 0.0
    totals = ranks.numbers([own_sum, n_records])
    loss_sum, all_records = (sum(column) for column in zip(*totals, strict=True))
    sums = take_gradients(state.parameters, ranks)
    torch._foreach_div_(list(sums.values()), max(1.0, float(all_records)))
    state.apply_without_privacy(sums)
    return ClipCounts(n_units=int(all_records), loss_sum=loss_sum)
