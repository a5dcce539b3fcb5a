"""The values that cross the boundary carry what belongs to them, and cannot be altered."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from support.waiting import noted_waits
from taciturn.engine.privacy.types import ClipCounts, Tally, UnitBatch

IDS, WEIGHTS = torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5)


@pytest.mark.parametrize("units", [[0, 1, 2], [0, -1, 1], [7, 0, 1]])
def test_units_must_be_among_those_announced(units: list[int]) -> None:
    with pytest.raises(ValueError, match=r"\[0, n_units=2\)"):
        UnitBatch(IDS, WEIGHTS, torch.tensor(units), n_units=2)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="same"):
        UnitBatch(IDS, WEIGHTS[:, :4], torch.tensor([0, 0, 1]), n_units=2)
    with pytest.raises(ValueError, match="same"):
        UnitBatch(IDS[0], WEIGHTS[0], torch.tensor([0, 0, 1]), n_units=2)
    with pytest.raises(ValueError, match="one unit per sequence"):
        UnitBatch(IDS, WEIGHTS, torch.tensor([0, 1]), n_units=2)


def test_moves_as_a_whole() -> None:
    batch = UnitBatch(IDS, WEIGHTS, torch.tensor([0, 1, 1]), n_units=2)
    moved = batch.to(torch.device("meta"))
    tensors = (moved.input_ids_BT, moved.loss_weights_BT, moved.unit_of_B)
    assert {each.device.type for each in tensors} == {"meta"}
    assert moved.n_units == 2


def test_layout_is_made_before_the_batch_moves() -> None:
    """On a device nobody could look at the units without waiting for it."""
    batch = UnitBatch(IDS, WEIGHTS, torch.tensor([0, 1, 1]), n_units=2)
    moved = batch.to(torch.device("meta"))
    assert moved.layout.unit_of_B is moved.unit_of_B
    assert [each.sequences_GK.shape for each in moved.layout.groups] == [(1, 1), (1, 2)]
    with pytest.raises(ValueError, match="another batch"):
        dataclasses.replace(moved, unit_of_B=moved.unit_of_B.clone())


def test_a_unit_alone_keeps_its_width() -> None:
    ids = torch.arange(15).view(3, 5)
    one = UnitBatch(ids, WEIGHTS, torch.tensor([1, 0, 1]), n_units=3, n_fillers=1).alone(1)
    assert one.input_ids_BT.tolist() == ids[[0, 2]].tolist()
    assert (one.n_units, one.n_fillers, one.unit_of_B.tolist()) == (1, 0, [0, 0])


def test_tally_is_read_at_once() -> None:
    """Figures of all units, and which of each microbatch are outstanding."""
    first = torch.tensor([[1, 0], [0, 0], [2, 0], [3, 0], [0, 1]], dtype=torch.float64)
    second = torch.tensor([[0, 0], [1, 0], [0, 5], [0, 7], [0, 0]], dtype=torch.float64)
    tally = Tally(ClipCounts(n_units=10), (first,)) + Tally(unread=(second,))
    with noted_waits() as waits:
        counts, outstanding = tally.read()
    assert waits == ["cpu"]
    assert counts == ClipCounts(13, 1, 1, 7.0, 10.0)
    assert outstanding == [[1], []]
    assert Tally(counts).read() == (counts, [])


def test_is_frozen() -> None:
    batch = UnitBatch(IDS, WEIGHTS, torch.tensor([0, 1, 1]), n_units=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.n_units = 3  # type: ignore[misc]


def test_counts_add_up() -> None:
    one = ClipCounts(n_units=3, n_clipped=2, n_non_finite=1, loss_sum=0.5, norm_sum=4.0)
    assert one + ClipCounts() == one
    assert one + one == ClipCounts(6, 4, 2, 1.0, 8.0)
