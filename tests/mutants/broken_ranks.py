"""Steps and plans for several ranks as other libraries got them wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mutants.broken_steps import Run
from mutants.harness import key
from mutants.variants import Step
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import BoundedSum, PrivateGradient
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import TrainingPlan, make_plan
from taciturn.spec import FitSpec


@dataclass(frozen=True)
class RankRun(Run):
    """A step of one rank, and what mutants do with it."""

    ranks: Ranks = ALONE

    def deal(self) -> NDArray[np.int64]:
        """This rank's share of rank 0's draw."""
        drawn = self.draw() if self.ranks.first else None
        return self.ranks.deal(drawn, lambda unit: sum(self.dataset.lengths(unit)))

    def part(self, units: NDArray[np.int64]) -> BoundedSum:
        """The clipped sum over this rank's units."""
        return self.total(self.groups(units))

    def apply(self, own: PrivateGradient) -> None:
        """Put the rows together and update."""
        shapes = self.state.parameters
        self.state.apply(self.mechanism.on_every_rank(own, shapes, self.ranks))

    def apply_summed(self, part: PrivateGradient, divisor: float) -> None:
        """Sum the ranks' whole gradients, as an all-reduce does, divide, and update."""
        rows = self.ranks.sum_rows({name: value.double() for name, value in part.values.items()})
        own = {name: (value / divisor).float() for name, value in rows.items()}
        self.apply(PrivateGradient(own, part.noise_std))


def broken_rank(step: Callable[[RankRun], None]) -> Step:
    """A step with the signature of `private_step`."""
    return lambda *arguments, **named: step(RankRun(*arguments, **named))


@broken_rank
def step_with_noise_on_every_part(run: RankRun) -> None:
    """Each rank adds the full noise to its part; the parts are summed: sqrt(ranks) too much."""
    run.apply_summed(run.mechanism.add_noise(run.part(run.deal()), run.streams.noise), 1)


@broken_rank
def step_with_averaged_noise(run: RankRun) -> None:
    """Each rank scales its sum up and adds the full noise; the mean has sqrt(ranks) too little."""
    part = run.part(run.deal())
    for value in part.values.values():
        value.mul_(run.ranks.size)
    run.apply_summed(run.mechanism.add_noise(part, run.streams.noise), run.ranks.size)


@broken_rank
def step_with_the_same_stream_on_every_rank(run: RankRun) -> None:
    """Every rank's stream has the key of a seed that all were given."""
    total = run.mechanism.sum_over_ranks(run.part(run.deal()), run.ranks)
    run.apply(run.mechanism.add_noise(total, SecureStream(key(len(run.state.released)))))


@broken_rank
def step_with_noise_on_the_first_rows(run: RankRun) -> None:
    """Only rank 0 adds noise, and only to the rows that it owns."""
    total = run.mechanism.sum_over_ranks(run.part(run.deal()), run.ranks)
    private = run.mechanism.add_noise(total, run.streams.noise)
    if not run.ranks.first:
        divisor = run.mechanism.expected_batch_size
        bare = {name: (value / divisor).float() for name, value in total.values.items()}
        private = PrivateGradient(bare, private.noise_std)
    run.apply(private)


@broken_rank
def step_with_noise_of_its_own(run: RankRun) -> None:
    """The sum is shared; each rank then adds noise to all of it for itself."""
    total = run.mechanism.sum_over_ranks(run.part(run.deal()), run.ranks)
    shapes = {name: value.shape for name, value in run.state.parameters.items()}
    whole = BoundedSum(run.ranks.whole(total.values, shapes), total.l2_sensitivity, total.counts)
    run.state.apply(run.mechanism.add_noise(whole, run.streams.noise))


@broken_rank
def step_with_a_draw_on_every_rank(run: RankRun) -> None:
    """Each rank draws for itself, from all units: one may be in several draws."""
    _finish(run, run.draw())


@broken_rank
def step_with_the_draw_on_every_rank(run: RankRun) -> None:
    """All ranks know the draw, and nobody deals it."""
    table = run.draw() if run.ranks.first else None
    everybody = run.ranks.everybody(_as_tensor(table, run.mechanism.n_units))
    _finish(run, np.flatnonzero(everybody[0].numpy()))


def _as_tensor(drawn: NDArray[np.int64] | None, n_units: int) -> Tensor:
    out = torch.zeros(n_units, dtype=torch.int64)
    if drawn is not None:
        out[torch.from_numpy(drawn)] = 1
    return out


@broken_rank
def step_that_fills_empty_ranks(run: RankRun) -> None:
    """A rank without a unit takes the first of the data, so that it has a gradient."""
    units = run.deal()
    _finish(run, units if len(units) else np.zeros(1, dtype=np.int64))


@broken_rank
def step_with_the_mean_over_ranks(run: RankRun) -> None:
    """What DDP does with gradients: their mean over ranks."""
    part = run.part(run.deal())
    for value in part.values.values():
        value.div_(run.ranks.size)
    total = run.mechanism.sum_over_ranks(part, run.ranks)
    run.apply(run.mechanism.add_noise(total, run.streams.noise))


@broken_rank
def step_with_a_share_of_the_norm(run: RankRun) -> None:
    """Each rank clips to its share of the norm, as if a unit were on all of them."""
    share = replace(run.mechanism, l2_clip_norm=run.mechanism.l2_clip_norm / run.ranks.size)
    total = share.sum_over_ranks(replace(run, mechanism=share).part(run.deal()), run.ranks)
    run.apply(share.add_noise(total, run.streams.noise))


def _finish(run: RankRun, units: NDArray[np.int64]) -> None:
    total = run.mechanism.sum_over_ranks(run.part(units), run.ranks)
    run.apply(run.mechanism.add_noise(total, run.streams.noise))


def plan_with_delta_times_ranks(spec: FitSpec, facts: PublicFacts, ranks: int) -> TrainingPlan:
    """Each rank accounts for delta, and delta is then added up."""
    plan = make_plan(spec, facts)
    assert plan.privacy is not None
    delta = plan.privacy.delta * ranks
    return plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"delta": delta})})


def plan_of_the_share(spec: FitSpec, facts: PublicFacts, ranks: int) -> TrainingPlan:
    """Each rank plans for its shard of the data: delta and probability of fewer units."""
    return make_plan(spec, replace(facts, n_units=facts.n_units // ranks))
