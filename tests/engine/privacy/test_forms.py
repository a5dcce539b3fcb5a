"""The form of per-unit gradients follows from public shapes, and can be chosen."""

from __future__ import annotations

import pytest
import torch

from taciturn.engine.privacy.forms import Form, keeps_factors, rates_of


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


@pytest.mark.parametrize(
    ("capability", "dtype", "rows", "kept"),
    [
        ((9, 0), torch.float32, 256, True),  # float64 as fast as fp32
        ((9, 0), torch.float32, 1024, False),
        ((9, 0), torch.bfloat16, 64, True),
        ((9, 0), torch.bfloat16, 256, False),  # 16 times as fast in bf16
        ((8, 0), torch.bfloat16, 64, True),
        ((8, 9), torch.float32, 4, True),
        ((8, 9), torch.float32, 16, False),  # 1/64 of fp32's rate in float64
        ((8, 6), torch.bfloat16, 16, False),
    ],
)
def test_the_kind_of_gpu_decides(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    rows: int,
    kept: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    rates_of.cache_clear()
    rates = rates_of(torch.device("cuda", 0), dtype)
    rates_of.cache_clear()
    assert keeps_factors(Form.AUTO, 4096, 4096, rows, 8, rates=rates) is kept
    # A table of a large vocabulary is never instantiated where a few of its rows are looked up.
    assert keeps_factors(Form.AUTO, 128_000, 4096, 384, 8, looked_up=True, rates=rates)
