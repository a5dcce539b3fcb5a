"""Checks of a step on 1, 2 and 3 ranks: one draw, one noise, sum and guarantee of one process."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mutants.harness import (
    CHANCE,
    CLIP,
    LIMITS,
    SIGMA,
    SILENT,
    UNITS,
    fixed,
    key,
    released,
    run,
    streams,
)
from mutants.noise_checks import two_sided
from mutants.variants import Dataset, State, TinyLm, Variant, names_of
from support.ranks import in_threads
from taciturn.accounting.calibrate import default_delta
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.training.step import Streams
from taciturn.planning.defaults import PublicFacts
from taciturn.spec import FitSpec

SIZES = (1, 2, 3)
BATCH_SIZE = 4


def _run(
    variant: Variant,
    size: int,
    *,
    drawn: list[int] | None,
    sigma: float = SIGMA,
    steps: int = 1,
    same_start: int = 0,
) -> list[tuple[State, Dataset]]:
    """Steps on `size` ranks: what each released and read. Rank 0's sampling has a fixed key."""

    def on_rank(ranks: Ranks) -> tuple[State, Dataset]:
        model, dataset = TinyLm(variant.loss_of), Dataset(UNITS)
        mechanism = fixed(variant, drawn)(
            len(UNITS), BATCH_SIZE, steps, sigma, CLIP, names_of(model)
        )
        state = State({name: model.get_parameter(name) for name in names_of(model)})
        noise = SecureStream(key(1000 * (1 + same_start) + 10 * size + ranks.rank))
        own = Streams(SecureStream(key(50 + ranks.rank)), noise)
        for _ in range(steps):
            variant.step(model, dataset, mechanism, state, own, LIMITS, ranks=ranks)
        return state, dataset

    return in_threads(size, on_rank)


def noise_over_ranks(variant: Variant) -> None:
    """With zero data the released gradient has the noise of the account, neither less nor more."""
    for size in SIZES:
        state, _ = _run(variant, size, drawn=[], steps=30)[0]
        _each_row(state, SIGMA * CLIP / BATCH_SIZE)


def _each_row(state: State, std: float) -> None:
    """All values together, and every row of every parameter: rows have different owners."""
    two_sided(released(state), std)
    for name, parameter in state.parameters.items():
        steps = torch.stack([each.values[name].double() for each in state.released])
        for row in range(len(parameter)):
            two_sided(steps[:, row].flatten(), std)


def fresh_noise_over_ranks(variant: Variant) -> None:
    """No value of the noise comes twice in one gradient: ranks do not share a stream."""
    for size in SIZES:
        state, _ = _run(variant, size, drawn=[], steps=3)[0]
        values = released(state)
        assert len(values.unique()) > 0.99 * len(values), f"noise came twice on {size} ranks"


def one_gradient(variant: Variant) -> None:
    """All ranks apply the same gradient, bit for bit, once per step; or their weights part."""
    for size in SIZES:
        states = [state for state, _ in _run(variant, size, drawn=[0, 1, 5], steps=2)]
        assert all(len(state.released) == 2 for state in states)
        first = released(states[0])
        assert all(torch.equal(released(state), first) for state in states)


def each_unit_on_one_rank(variant: Variant) -> None:
    """The ranks read rank 0's draw between them, each unit once; also if it is small or empty."""
    expected = variant.mechanism(8, BATCH_SIZE, 1, SIGMA, CLIP, ("w",)).sample(
        SecureStream(key(50)), 8
    )
    for size in SIZES:
        for drawn in (None, [], [3], [5, 6], list(range(8))):
            read = [unit for _, data in _run(variant, size, drawn=drawn) for unit in data.read]
            wanted = list(expected) if drawn is None else drawn
            assert sorted(read) == wanted, f"{size} ranks read {len(read)} of {len(wanted)} units"


def sum_over_ranks(variant: Variant) -> None:
    """The gradient is that of one process, whatever the share of a rank, empty ones included."""
    for drawn in ([], [3], [5, 6], list(range(8))):
        alone = released(run(variant, Dataset(UNITS), streams(1), drawn=drawn, sigma=SILENT))
        for size in SIZES[1:]:
            state, _ = _run(variant, size, drawn=drawn, sigma=SILENT)[0]
            _close(released(state), alone)


def _close(value: Tensor, expected: Tensor) -> None:
    error = float((value - expected).norm())
    assert error <= 1e-5 * float(expected.norm()) + 1e-6 * CLIP, f"the sum is off by {error:.1e}"


def guarantee_over_ranks(variant: Variant) -> None:
    """Epsilon, delta and noise do not depend on the number of ranks, and hold for all units."""
    spec = FitSpec(target_epsilon=3, batch_size=64, steps=20)
    facts = PublicFacts(3000, "base", 1000, 64)
    plans = [variant.plan(spec, facts, size).privacy for size in SIZES]
    for size, privacy in zip(SIZES, plans, strict=True):
        assert privacy is not None
        assert privacy.delta == default_delta(facts.n_units), f"delta is off on {size} ranks"
        event = dpsgd_event(
            sampling_probability=64 / facts.n_units,
            noise_multiplier=privacy.noise_multiplier,
            steps=20,
        )
        assert np.isclose(epsilon(event, privacy.delta), privacy.epsilon, rtol=1e-6)
        assert privacy.epsilon <= 3 * (1 + CHANCE)
    assert all(privacy == plans[0] for privacy in plans)
