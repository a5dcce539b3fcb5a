"""Every variant reads the same tokens, whether padded in a batch or from the engine's data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steps.workload import IGNORED, Workload

WORKLOAD = Workload.random([[5, 3, 4, 2], [6, 1, 2, 2]], vocabulary=50)


@pytest.mark.parametrize("unit_size", [1, 2, 4])
def test_the_data_set_holds_the_batches(unit_size: int) -> None:
    dataset = WORKLOAD.dataset(unit_size)
    assert dataset.n_units == 8 // unit_size
    for batch in WORKLOAD.batches:
        units = WORKLOAD.units_of(batch, unit_size)
        records = [record for unit in units for record in dataset.records(int(unit))]
        for record, tokens in zip(records, batch.records, strict=True):
            assert np.array_equal(record.input_ids, tokens)
            assert record.targets.tolist() == [False] + [True] * (len(tokens) - 1)


def test_units_must_be_whole() -> None:
    with pytest.raises(ValueError, match="whole units"):
        WORKLOAD.dataset(3)


def test_padding_is_no_target_and_each_record_weighs_one() -> None:
    first, second = WORKLOAD.batches
    assert first.input_ids_BT.shape == (4, 5)
    assert first.n_tokens == 14
    assert torch.equal(
        first.next_ids_BT[:, :-1][first.weights_BT[:, :-1] > 0],
        torch.cat([torch.from_numpy(r[1:].astype(np.int64)) for r in first.records]),
    )
    assert (first.next_ids_BT[first.weights_BT == 0] == IGNORED).all()
    assert first.weights_BT.sum(1).tolist() == pytest.approx([1, 1, 1, 1])
    assert second.weights_BT.sum(1).tolist() == pytest.approx([1, 0, 1, 1])


def test_blocks_are_in_order() -> None:
    assert [[b.index for b in block] for block in WORKLOAD.blocks(1)] == [[0], [1]]
    assert [[b.index for b in block] for block in WORKLOAD.blocks(2)] == [[0, 1]]
