"""The example of pairs runs, on fewer patients, and learns what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.mark.timeout(1800)
def test_the_example_learns_a_preference(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(root / "examples" / "preference_pairs.py"))["main"]
    # A third of the example's work.
    accuracy = main(tmp_path / "out", n_patients=120, batch_size=24, steps=8)
    shown = capsys.readouterr().out
    assert "DP (epsilon=" in shown
    assert "held-out pairs are ranked as people did" in shown
    assert accuracy >= 0.75
