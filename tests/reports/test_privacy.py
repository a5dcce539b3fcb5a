"""What is said of a guarantee is never stronger than the guarantee, and damage is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from taciturn.errors import ModelError
from taciturn.reports.privacy import policy_of, read_report


@pytest.mark.parametrize(
    ("delta", "shown"), [(1e-5, "1e-05"), (1.4e-5, "1.4e-05"), (2.49e-6, "2.49e-06")]
)
def test_delta_is_not_rounded_to_one_digit(delta: float, shown: str) -> None:
    assert policy_of(3, delta, "patient") == f"DP (epsilon=3, delta={shown}, unit=patient)"


@pytest.mark.parametrize("content", [None, "", "{", '{"guarantee": "none"}'])
def test_a_report_that_cannot_be_read(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "privacy_report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match="damaged or truncated"):
        read_report(path)
