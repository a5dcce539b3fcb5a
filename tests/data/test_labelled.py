"""Labelled texts come in units, bounded like records to train on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from taciturn.data.labelled import read_labelled
from taciturn.errors import MissingColumnError, RowError
from taciturn.spec import DataSpec

FRAME = pd.DataFrame(
    {"unit": ["b", "a", "b", "b"], "text": ["t0", "t1", "t2", "t3"], "label": ["x", "y", "x", "z"]}
)


def test_records_are_units(tmp_path: Path) -> None:
    found = read_labelled(FRAME, DataSpec(text_field="text"), "label", tmp_path)
    assert found.texts == ["t0", "t1", "t2", "t3"]
    assert found.labels == ["x", "y", "x", "z"]
    assert found.unit_of_N.tolist() == [0, 1, 2, 3]


def test_units_are_bounded(tmp_path: Path) -> None:
    spec = DataSpec(text_field="text", privacy_unit="unit", max_records_per_unit=2)
    found = read_labelled(FRAME, spec, "label", tmp_path)
    assert sorted(found.unit_of_N.tolist()) in ([0, 0, 1], [0, 1, 1])
    assert len(found.texts) == 3


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError, match="did you mean 'label'"):
        read_labelled(FRAME, DataSpec(text_field="text"), "labels", tmp_path)
    frame = FRAME.assign(label=["x", None, "x", "y"])
    with pytest.raises(RowError):
        read_labelled(frame, DataSpec(text_field="text"), "label", tmp_path)
