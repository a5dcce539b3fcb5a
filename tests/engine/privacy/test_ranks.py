"""Each unit on one rank, each row on one rank; sums and rows are those of one process."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.ranks import in_threads
from taciturn.engine.privacy import clipping, noise, ranks
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.privacy.types import PerUnitGradients
from taciturn.errors import GuaranteeError

SIZES = (1, 2, 3)
SHAPES = {"matrix": (7, 3), "vector": (5,), "scalar": (), "row": (1, 4), "three": (2, 3, 2)}


def deal(drawn: list[int], size: int, costs: dict[int, int] | None = None) -> list[list[int]]:
    def on_rank(own: Ranks) -> NDArray[np.int64]:
        units = np.array(drawn, dtype=np.int64) if own.first else None
        return own.deal(units, lambda unit: (costs or {}).get(unit, 1))

    return [share.tolist() for share in in_threads(size, on_rank)]


@settings(max_examples=25)
@given(st.sets(st.integers(0, 40)), st.sampled_from(SIZES), st.integers(0, 5))
def test_each_unit_is_on_one_rank(drawn: set[int], size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    costs = {unit: int(generator.integers(1, 100)) for unit in drawn}
    shares = deal(sorted(drawn), size, costs)
    assert sorted(unit for share in shares for unit in share) == sorted(drawn)
    work = [sum(costs[unit] for unit in share) for share in shares]
    # The greedy rule is never further off than one unit (Graham 1969).
    assert max(work) - min(work) <= max(costs.values(), default=0)


def test_fewer_units_than_ranks() -> None:
    assert sorted(map(len, deal([4], 3))) == [0, 0, 1]
    assert deal([], 3) == [[], [], []]


def test_even_work_with_one_long_unit() -> None:
    shares = deal(list(range(7)), 2, {0: 60})
    assert sorted(map(len, shares)) == [1, 6]


def test_unit_drawn_twice_is_refused() -> None:
    with pytest.raises(GuaranteeError, match="twice"):
        ALONE.deal(np.array([1, 1]), lambda unit: 1)


def test_second_draw_is_refused() -> None:
    with pytest.raises(GuaranteeError, match="one draw"):
        Ranks(rank=1, size=2).deal(np.array([1]), lambda unit: 1)
    with pytest.raises(GuaranteeError, match="one draw"):
        ALONE.deal(None, lambda unit: 1)


@given(st.integers(0, 50), st.integers(1, 9))
def test_each_row_has_one_owner(rows: int, size: int) -> None:
    slices = [Ranks(rank=rank, size=size).own_rows(rows) for rank in range(size)]
    assert slices[0].start == 0
    assert slices[-1].stop == rows
    assert all(one.stop == next_one.start for one, next_one in pairwise(slices))


def values(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("bucket", [1, 10, 1 << 23])
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_the_sum_make_the_sum(
    size: int, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_BUCKET", bucket)
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    wholes = in_threads(size, lambda own: own.whole(own.sum_rows(values(own.rank)), shapes))
    for name in SHAPES:
        expected = torch.stack([values(rank)[name] for rank in range(size)]).sum(0)
        for whole in wholes:
            torch.testing.assert_close(whole[name], expected, rtol=1e-14, atol=1e-14)
            assert torch.equal(whole[name], wholes[0][name])


@pytest.mark.parametrize("size", SIZES)
def test_own_rows_are_those_that_are_owned(size: int) -> None:
    for rank, rows in enumerate(in_threads(size, lambda own: own.sum_rows(values(0)))):
        own = Ranks(rank=rank, size=size)
        expected = size * values(0)["matrix"][own.own_rows(7)]
        torch.testing.assert_close(rows["matrix"], expected)


def gradients(units: list[int]) -> PerUnitGradients:
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(6, *shape, generator=generator) for name, shape in SHAPES.items()}
    return PerUnitGradients(
        {name: value[units] for name, value in drawn.items()}, torch.ones(len(units))
    )


@pytest.mark.parametrize("size", SIZES)
def test_sum_and_counts_of_one_process(size: int) -> None:
    alone = clipping.clip_and_sum(gradients(list(range(6))), 0.5)

    def on_rank(own: Ranks) -> clipping.BoundedSum:
        part = clipping.clip_and_sum(gradients(list(range(own.rank, 6, size))), 0.5)
        return clipping.sum_over_ranks(part, own)

    totals = in_threads(size, on_rank)
    for rank, total in enumerate(totals):
        assert total.l2_sensitivity == 0.5
        assert total.counts.n_units == 6
        assert math.isclose(total.counts.norm_sum, alone.counts.norm_sum)
        own = Ranks(rank=rank, size=size).own_rows(7)
        torch.testing.assert_close(total.values["matrix"], alone.values["matrix"][own])


def test_different_clip_norms_are_refused() -> None:
    def on_rank(own: Ranks) -> object:
        part = clipping.empty_sum({"w": torch.zeros(3)}, 0.5 + own.rank)
        return clipping.sum_over_ranks(part, own)

    with pytest.raises(GuaranteeError, match="different norms"):
        in_threads(2, on_rank)


def test_removing_a_unit_moves_the_sum_by_the_norm_at_most() -> None:
    """The neighbour test of three ranks: whoever holds the unit."""

    def total(units: list[int]) -> torch.Tensor:
        def on_rank(own: Ranks) -> dict[str, torch.Tensor]:
            drawn = np.array(units) if own.first else None
            mine = own.deal(drawn, lambda unit: 1 + unit).tolist()
            part = clipping.clip_and_sum(gradients(mine), 0.5)
            rows = clipping.sum_over_ranks(part, own).values
            return own.whole(rows, {name: torch.Size(shape) for name, shape in SHAPES.items()})

        return torch.cat([value.flatten() for value in in_threads(3, on_rank)[0].values()])

    everybody = total(list(range(6)))
    for removed in range(6):
        rest = total([unit for unit in range(6) if unit != removed])
        assert float((everybody - rest).norm()) <= 0.5 * (1 + 1e-6)


def test_alone_nothing_is_sent() -> None:
    own = values(0)
    assert ALONE.sum_rows(own) == own
    assert ALONE.numbers([1.0, 2.0]) == [[1.0, 2.0]]
    private = noise.PrivateGradient({"w": torch.ones(2)}, 1.0)
    shared = noise.on_every_rank(private, {"w": torch.zeros(2)}, ALONE)
    assert shared.values["w"] is private.values["w"]
