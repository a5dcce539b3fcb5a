"""The values that cross the boundary carry what belongs to them, and cannot be altered."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from taciturn.engine.privacy.types import ClipCounts, UnitBatch

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


def test_is_frozen() -> None:
    batch = UnitBatch(IDS, WEIGHTS, torch.tensor([0, 1, 1]), n_units=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.n_units = 3  # type: ignore[misc]


def test_counts_add_up() -> None:
    one = ClipCounts(n_units=3, n_clipped=2, n_non_finite=1, loss_sum=0.5, norm_sum=4.0)
    assert one + ClipCounts() == one
    assert one + one == ClipCounts(6, 4, 2, 1.0, 8.0)
