"""Plays an engine in a world: what it releases with the canary and without."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from auditing.books import Pages
from auditing.worlds import World
from mutants.harness import SILENT
from mutants.variants import REAL, State, Step, Variant, names_of
from support.ranks import in_threads
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import SecureStream

USER_SEED = 42
Released = list[NDArray[np.float64]]
"""Everything that an attacker sees of one run: each released gradient, as one vector [P]."""


@dataclass(frozen=True)
class Played:
    """Games of one engine in one world: what was released, and whether the canary was in."""

    released: list[Released]
    included: list[bool]


def play(engine: Variant, world: World, runs: int, coins: np.random.Generator) -> Played:
    """Independent runs, each with a coin and streams of its own."""
    included = [bool(coin) for coin in coins.integers(2, size=runs)]
    return Played([release(engine, world, member) for member in included], included)


def release(engine: Variant, world: World, member: bool, *, silent: bool = False) -> Released:
    """One run. `silent` leaves the noise out: what an attacker does with a copy of its own."""

    def on_rank(ranks: Ranks) -> Released:
        model, data = world.model(engine.loss_of), Pages(world.units(member))
        mechanism = _among(engine.mechanism, data.n_units)(
            n_units=world.slots,
            expected_batch_size=world.batch_size,
            steps=world.steps,
            noise_multiplier=SILENT if silent else world.noise_multiplier,
            l2_clip_norm=world.clip,
            parameter_names=names_of(model),
        )
        state = State({name: model.get_parameter(name) for name in names_of(model)})
        step, streams = _step(engine, world, ranks), engine.streams(USER_SEED)
        for _ in range(world.steps):
            step(model, data, mechanism, state, streams, world.limits)
        return [
            np.concatenate([value.double().numpy().ravel() for value in each.values.values()])
            for each in state.released
        ]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(USER_SEED)  # as HF's Trainer does before each training
        return _seen(in_threads(world.ranks, on_rank))


def _seen(of_ranks: list[Released]) -> Released:
    """All ranks should show the same; if they do not, their mean tells most."""
    return [np.mean(step, axis=0) for step in zip(*of_ranks, strict=True)]


def _among(mechanism: type[DpSgdMechanism], present: int) -> type[DpSgdMechanism]:
    """The mechanism, drawing among the units that are there, each as often as is accounted for."""

    class Among(mechanism):  # type: ignore[misc, valid-type]
        def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
            drawn = super().sample(stream, n_present)
            return drawn[drawn < present]

    return Among


def _step(engine: Variant, world: World, ranks: Ranks) -> Step:
    if world.ranks > 1:
        return partial(engine.step, ranks=ranks)
    if engine.step is REAL.step:
        return partial(engine.step, form=world.form)
    return engine.step
