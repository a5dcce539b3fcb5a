"""What is written comes back, unit by unit, as views of the memory map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data.tokens import store
from taciturn.data.tokens.encoding import EncodedRecords
from taciturn.data.tokens.store import TokenizedDataset, TokenWriter
from taciturn.errors import CheckpointError

Units = list[list[list[int]]]
UNITS = st.lists(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=4),
    min_size=1,
    max_size=12,
)


def encoded(records: list[list[int]]) -> EncodedRecords:
    ids = np.array([token for record in records for token in record], dtype=np.int32)
    return EncodedRecords(ids, ids % 2 == 0, np.array([len(record) for record in records]))


def write(folder: Path, units: Units, per_call: int = 3, spec: str = "{}") -> TokenizedDataset:
    folder.mkdir()
    writer = TokenWriter(folder)
    rows = [(record, not n) for unit in units for n, record in enumerate(unit)]
    for start in range(0, len(rows), per_call):
        records, first = zip(*rows[start : start + per_call], strict=True)
        writer.add(encoded(list(records)), np.array(first))
    writer.close(spec)
    return TokenizedDataset.open(folder)


@settings(max_examples=30)
@given(UNITS, st.integers(1, 20), st.integers(1, 30), st.integers(1, 6))
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, units: Units, per_call: int, block: int, firsts: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_TOKENS_PER_BATCH", block)
        patch.setattr(store, "_UNITS_PER_BATCH", firsts)
        check_all(write(tmp_path_factory.mktemp("store") / "data", units, per_call), units)


def check_all(dataset: TokenizedDataset, units: Units) -> None:
    found = [[r.input_ids.tolist() for r in dataset.records(n)] for n in range(len(dataset))]
    assert found == units
    assert [dataset.lengths(n) for n in range(len(units))] == [
        [len(record) for record in unit] for unit in units
    ]
    for n in range(len(units)):
        assert all((r.targets == (r.input_ids % 2 == 0)).all() for r in dataset.records(n))
    counts = (dataset.n_units, dataset.n_records, dataset.n_tokens)
    records = [record for unit in units for record in unit]
    assert counts == (len(units), len(records), sum(map(len, records)))


def test_records_are_read_only_views_of_the_right_type(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", [[[1, 2, 3]], [[4], [5, 6]]])
    first, second = dataset.records(1)[0], dataset.records(0)[0]
    for record in (first, second):
        assert (record.input_ids.dtype, record.targets.dtype) == (np.int32, np.bool_)
        assert not record.input_ids.flags.owndata
        assert not record.targets.flags.owndata
        assert not record.input_ids.flags.writeable
        assert not record.targets.flags.writeable
    assert np.shares_memory(first.input_ids, dataset.records(1)[0].input_ids)


def test_units_outside_the_range(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", [[[1, 2]]])
    for unit in (-1, 1):
        with pytest.raises(IndexError):
            dataset.records(unit)


def test_the_fingerprint_follows_content_units_and_spec(tmp_path: Path) -> None:
    variants: list[tuple[Units, str]] = [
        ([[[1, 2]], [[3]]], "a"),
        ([[[1, 2]], [[4]]], "a"),
        ([[[1, 2], [3]]], "a"),
        ([[[1, 2]], [[3]]], "b"),
    ]
    prints = [
        write(tmp_path / str(n), units, spec=spec).fingerprint
        for n, (units, spec) in enumerate(variants)
    ]
    assert len(set(prints)) == len(variants)
    again = write(tmp_path / "again", variants[0][0], spec="a")
    assert again.fingerprint == prints[0]
    assert prints[0] not in repr(again) + str(again)


def test_absent_or_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        TokenizedDataset.open(tmp_path / "nowhere")
    for damaged in ("tokens.arrow", "units.arrow", "meta.json"):
        folder = tmp_path / damaged.replace(".", "-")
        write(folder, [[[1, 2]]])
        whole = (folder / damaged).read_bytes()
        (folder / damaged).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="prepare it again"):
            TokenizedDataset.open(folder)


def test_counts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", [[[1, 2]]])
    meta = tmp_path / "data" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "n_records": 2}))
    with pytest.raises(CheckpointError):
        TokenizedDataset.open(tmp_path / "data")


def test_some_units_are_a_data_set_of_their_own(tmp_path: Path) -> None:
    whole = write(tmp_path / "data", [[[1, 2]], [[3], [4, 5]], [[6]], [[7, 8, 9], [10]], [[11]]])
    part = whole.only(np.array([4, 0, 3, 1])).only(np.array([3, 2]))
    assert (part.n_units, part.n_records, part.n_tokens) == (2, 4, 7)
    found = [[each.input_ids.tolist() for each in part.records(unit)] for unit in range(2)]
    assert found == [[[3], [4, 5]], [[7, 8, 9], [10]]]
    assert part.lengths(1) == [3, 1]
    assert whole.n_units == 5
    with pytest.raises(IndexError):
        part.records(2)
