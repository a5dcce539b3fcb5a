"""The mutants as engines under audit, and the worlds where they must be caught."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mutants.broken_steps import Run, broken_step
from mutants.mutants import MUTANTS
from mutants.variants import REAL, Step, Variant
from taciturn.engine.privacy import clipping
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.types import BoundedSum, PerUnitGradients, UnitBatch

CAUGHT_IN: dict[str, str] = {
    # mutant: world
    "half of sigma": "alone",
    "no noise": "alone",
    "noise repeated within a gradient": "alone",
    "no clip": "alone",
    "clip per parameter": "alone",
    "noise of seed 42": "alone",
    "noise of torch's seed": "alone",
    "clip per microbatch": "opposite",
    "norm over LoRA's A only": "two matrices",
    "unit that is not finite included": "not finite",
    "records clipped, not units": "records",
    "parts of a unit clipped": "parts",
    "rows filled with other units": "alone",
    "noise on one microbatch only": "microbatches",
    "mean over the batch's tokens": "crowd",
    "divided by what was drawn": "few",
    "empty draw skipped": "nobody",
    "empty draw filled": "seldom",
    "drawn oftener than said": "sampled",
    "batch filled from fewer units than declared": "seldom",
    "double draw": "alone",
    "noise started again at each step": "every other step",
    "uses of a tied weight kept apart": "tied",
    "norm of a unit's sequences apart": "records as factors",
    "noise on every rank, averaged": "more ranks",
    "the same noise on every rank": "two ranks",
    "noise on rank 0's rows only": "two ranks",
    "each rank applies its own noise": "more ranks",
    "each rank draws its own batch": "more ranks",
    "each rank takes the whole draw": "more ranks",
    "empty rank filled": "idle ranks",
    "units in the order of the data": "one turn",
    "tied norm overwritten by its last use": "tied",
}

NOT_CAUGHT: dict[str, str] = {
    # mutant: why no attack shows it; the checks in tests/mutants kill it all the same
    "norms in bf16": "norms are off by 0.4% at most: no number of runs that anybody waits for",
    "shuffle": "batches of a fixed size, uniformly drawn: it would take tens of thousands of runs",
    "neighbours drawn together": "one neighbour tells too little: tens of thousands of runs",
    "divided by the longest record": "a microbatch's length follows from the unit alone by now",
    "margin by the form": "moves a sum by 1e-4 of the clip norm for each unit: years of runs",
    "clipped without room for rounding": "a sum may move by 1e-4 of the clip norm: years of runs",
    "noise from the stream of the draw": "as strong as said; only who knew the draw knows it",
    "one key for draw and noise": "as strong as said; only who knew the draw knows it",
    "draw among declared units": "asks for units that are not there; those that are join as said",
    "norms by a loose bound": "clips shorter than it says, so it is more private",
    "tied norm overwritten": "the gradient is overwritten with its norm, so the two still agree",
    "units left out forgotten": "no unit of these worlds cancels; less of one is more private",
    "units left out added twice": "no unit of these worlds has factors that cancel",
    "units left out added as they are": "no unit of these worlds has factors that cancel",
    "others added in place of units left out": "no unit of these worlds has factors that cancel",
    "noise on every rank, summed": "more noise than it says",
    "mean over ranks": "less signal than it says, and all the noise",
    "clip norm divided among ranks": "norm and noise shrink together",
    "delta times the ranks": "what is run is right; another delta is stated",
    "delta of each rank's own units": "what is run is right or better; another delta is stated",
}


def engine(name: str) -> Variant:
    """A mutant as a whole engine: a part that is not a step's own is put into one."""
    variant, _ = MUTANTS[name]
    if variant.norms is not REAL.norms:
        return replace(variant, mechanism=_clipping_by(variant.norms))
    if variant.factors is not REAL.factors:
        return replace(variant, step=_step_of(variant.factors))
    return variant


def _step_of(gradients: Callable[[nn.Module, UnitBatch], PerUnitGradients]) -> Step:
    @broken_step
    def step(run: Run) -> None:
        of_groups = (gradients(run.loss, *group) for group in run.groups(run.draw()))
        run.release(run.mechanism.clip_and_sum(run.state.parameters, of_groups))

    return step


def _clipping_by(norms: Callable[[PerUnitGradients], Tensor]) -> type[DpSgdMechanism]:
    class Clipping(DpSgdMechanism):
        def clip_and_sum(
            self, parameters: Mapping[str, Tensor], microbatches: Iterable[PerUnitGradients]
        ) -> BoundedSum:
            total = clipping.empty_sum(parameters, self.l2_clip_norm)
            for each in microbatches:
                norms_U = norms(each)
                finite_U = norms_U.isfinite()  # a unit that is not is none of these mutants' faults
                scale_U = torch.where(finite_U, (self.l2_clip_norm / norms_U).clamp(max=1.0), 0.0)
                sums = {
                    name: torch.einsum("u,u...->...", scale_U[finite_U], value[finite_U].double())
                    for name, value in each.dense().items()
                }
                part = BoundedSum(sums, self.l2_clip_norm)
                total = clipping.merge_disjoint(total, part)
            return total

    return Clipping
