"""The form of per-unit gradients follows from public shapes, and can be chosen."""

from __future__ import annotations

import pytest

from taciturn.engine.privacy.forms import Form, keeps_factors


@pytest.mark.parametrize(
    ("out_features", "in_features", "rows", "units", "kept"),
    [
        (4096, 4096, 32, 8, True),  # few rows: their products cost less than reading a gradient
        (4096, 4096, 128, 8, False),  # their products in float64 cost more
        (4096, 4096, 2048, 8, False),  # long rows: instantiated, at the ordinary gradient's price
        (8, 4096, 64, 8, False),  # LoRA: the matrix is smaller than any Gram matrix
        (128_000, 4096, 32, 8, True),  # a large vocabulary's head
        (4096, 4096, 32, 1, False),  # one unit: its gradient is the ordinary one
    ],
)
def test_auto_chooses_by_shape(
    out_features: int, in_features: int, rows: int, units: int, kept: bool
) -> None:
    assert keeps_factors(Form.AUTO, out_features, in_features, rows, units) is kept


def test_a_table_of_which_rows_are_looked_up_is_multiplied_with_nothing() -> None:
    assert keeps_factors(Form.AUTO, 128_000, 4096, 384, 8, looked_up=True)


@pytest.mark.parametrize("rows", [1, 10_000])
def test_can_be_overridden(rows: int) -> None:
    assert keeps_factors(Form.FACTORS, 8, 8, rows, 1)
    assert not keeps_factors(Form.INSTANTIATE, 8, 8, rows, 9)
