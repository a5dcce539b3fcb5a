"""One unit added or removed moves the sum by at most C: ten thousand trials, and real models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mutants.harness import SILENT, released, run, streams
from mutants.variants import REAL, Dataset, TinyLm, names_of
from support.tiny_models import build, random_batch, units_of, with_lora
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch

pytestmark = [pytest.mark.statistical, pytest.mark.filterwarnings("ignore")]

SLACK = 1 + 1e-6


def random_units(generator: np.random.Generator, vocabulary: int) -> UnitBatch:
    """One to eight units of one to three records, mostly short, some long beside the others."""
    n_units = int(generator.integers(1, 9))
    records = generator.integers(1, 4, size=n_units)
    lengths = np.where(
        generator.random(records.sum()) < 0.15,
        generator.integers(30, 48, size=records.sum()),
        generator.integers(2, 12, size=records.sum()),
    )
    units = np.repeat(np.arange(n_units), records)
    batch = random_batch(lengths.tolist(), units.tolist(), seed=int(generator.integers(1 << 30)))
    batch.input_ids_BT.remainder_(vocabulary)
    return batch


def random_groups(units: list[int], generator: np.random.Generator) -> list[list[int]]:
    """A random partition, in random order."""
    rest, groups = generator.permutation(units).tolist(), []
    while rest:
        size = int(generator.integers(1, len(rest) + 1))
        groups.append(rest[:size])
        rest = rest[size:]
    return groups


def gradients_of_units(
    loss: nn.Module, batch: UnitBatch, generator: np.random.Generator
) -> dict[int, PerUnitGradients]:
    """Each unit's gradients, computed in the company of a random microbatch."""
    out = {}
    for group in random_groups(list(range(batch.n_units)), generator):
        of_group = per_example_gradients(loss, units_of(batch, group))
        for row, unit in enumerate(group):
            out[unit] = select(of_group, [row])
    return out


def select(gradients: PerUnitGradients, rows: list[int]) -> PerUnitGradients:
    values = {name: value[rows] for name, value in gradients.values.items()}
    return PerUnitGradients(values, gradients.losses_U[rows])


def clipped_sum(
    loss: nn.Module,
    gradients: dict[int, PerUnitGradients],
    units: list[int],
    clip: float,
    generator: np.random.Generator,
) -> Tensor:
    """The mechanism's sum over `units` in a random split into microbatches, one float64 vector."""
    names = names_of(loss)
    mechanism = DpSgdMechanism(max(1, len(units)), 1, 1, 1.0, clip, names)
    parts = (
        PerUnitGradients(
            {name: torch.cat([gradients[unit].values[name] for unit in group]) for name in names},
            torch.cat([gradients[unit].losses_U for unit in group]),
        )
        for group in random_groups(units, generator)
    )
    total = mechanism.clip_and_sum({name: loss.get_parameter(name) for name in names}, parts)
    return torch.cat([value.flatten() for value in total.values.values()])


def try_neighbours(
    loss: nn.Module, vocabulary: int, generator: np.random.Generator, trials: int
) -> None:
    """Random data, twice in random company; random neighbours within it, at random clip norms."""
    batch = random_units(generator, vocabulary)
    one, other = (gradients_of_units(loss, batch, generator) for _ in range(2))
    for _ in range(trials):
        present = [unit for unit in range(batch.n_units) if generator.random() < 0.8]
        dropped = int(generator.integers(batch.n_units))
        without = [unit for unit in present if unit != dropped]
        clip = float(10 ** generator.uniform(-3, 2))
        with_it = clipped_sum(loss, one, [*without, dropped], clip, generator)
        moved = float((with_it - clipped_sum(loss, other, without, clip, generator)).norm())
        assert moved <= clip * SLACK, f"{moved / clip:.9f} C with C={clip}"


@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_neighbours(seed: int) -> None:
    """Two thousand for each seed, so that they can run side by side."""
    generator, loss = np.random.default_rng(seed), TinyLm(weighted_cross_entropy)
    for _ in range(50):
        try_neighbours(loss, 23, generator, trials=40)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_neighbours_on_real_architectures(name: str, method: str) -> None:
    generator = np.random.default_rng(2)
    model = build(name) if method == "full" else with_lora(build(name))
    for _ in range(8):
        try_neighbours(CausalLmLoss(model), 61, generator, trials=10)


def factored_sum(
    loss: nn.Module, batch: UnitBatch, units: list[int], clip: float, generator: np.random.Generator
) -> Tensor:
    """As `clipped_sum`, from gradients kept as factors: each group is one product in fp32."""
    names = names_of(loss)
    mechanism = DpSgdMechanism(max(1, len(units)), 1, 1, 1.0, clip, names)
    parts = (
        per_example_gradients(loss, units_of(batch, group), Form.FACTORS)
        for group in random_groups(units, generator)
    )
    total = mechanism.clip_and_sum({name: loss.get_parameter(name) for name in names}, parts)
    return torch.cat([value.flatten() for value in total.values.values()])


def try_factored_neighbours(
    loss: nn.Module, vocabulary: int, generator: np.random.Generator
) -> None:
    batch = random_units(generator, vocabulary)
    everyone = list(range(batch.n_units))
    dropped = int(generator.integers(batch.n_units))
    without = [unit for unit in everyone if unit != dropped]
    clip = float(10 ** generator.uniform(-3, 2))
    with_it = factored_sum(loss, batch, everyone, clip, generator)
    moved = float((with_it - factored_sum(loss, batch, without, clip, generator)).norm())
    assert moved <= clip * SLACK, f"{moved / clip:.9f} C with C={clip}"


@pytest.mark.parametrize("seed", range(2))
def test_neighbours_with_factors(seed: int) -> None:
    """The fast path has the same bound; rounding in its products is covered by a margin."""
    generator, loss = np.random.default_rng(seed), TinyLm(weighted_cross_entropy)
    for _ in range(500):
        try_factored_neighbours(loss, 23, generator)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_neighbours_with_factors_on_real_architectures(name: str) -> None:
    generator, loss = np.random.default_rng(3), CausalLmLoss(build(name))
    for _ in range(20):
        try_factored_neighbours(loss, 61, generator)


@pytest.mark.parametrize("dropped", [0, 2, 5, 8])
def test_neighbour_of_a_whole_step(dropped: int) -> None:
    """Drop one unit, fix the randomness, measure: the released gradient moves by C / batch."""
    dataset = Dataset([[5], [9], [3, 4], [7], [16], [12, 2, 8, 30], [4], [6], [60, 50]])
    everyone = list(range(dataset.n_units))
    others = [unit for unit in everyone if unit != dropped]
    clip, batch_size = 0.7, 4
    one, other = (
        released(run(REAL, dataset, streams(1), drawn=drawn, clip=clip, batch_size=batch_size))
        for drawn in (everyone, others)
    )
    # The grid of the noise and fp32 are public roundings after the fact; they may move it as well.
    rounding = 1e-6 * clip * len(one) ** 0.5
    assert float((one - other).norm()) <= clip / batch_size * SLACK + rounding
    quiet, quieter = (
        released(run(REAL, dataset, streams(1), drawn=drawn, clip=clip, sigma=SILENT))
        for drawn in (everyone, others)
    )
    assert float((quiet - quieter).norm()) >= 0.9 * clip / batch_size, "the unit did count"
