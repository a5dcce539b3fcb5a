"""Figures in the documents are those of the files that `make bench` has written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "bench" / "results" / "private_step.md").read_text(encoding="utf-8")
WIDTHS = ("T=64", "T=256", "T=1024", "T=4096")
VARIANTS = {"with DP": ("taciturn, DP",), "Opacus' fastest mode": ("Opacus hooks", "Opacus ghost")}


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def measured(method: str, variants: tuple[str, ...]) -> list[float]:
    """Time beside the plain loop at each width, and beside the Trainer on real lengths; of several
    variants the fastest."""
    steps = rows(RESULTS, "Steps, every sequence its own unit")
    ratios = [
        min(
            _ratio(row[3])
            for row in steps
            if row[0].startswith(f"{method}, {width},") and row[1] in variants
        )
        for width in WIDTHS
    ]
    epochs = rows(RESULTS, "Real lengths (PHEE), padding not counted as tokens")
    lengths = [_ratio(row[-1]) for row in epochs if row[0] == method and row[1] in variants]
    return [*ratios, min(lengths)]


def shown() -> dict[str, list[float]]:
    """Row -> figures of README's table of a private step."""
    lines = README.partition("**What a private step costs.**")[2].splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "x |" in line
    ]
    return {row[0]: [float(cell.removesuffix("x")) for cell in row[1:]] for row in cells}


def _ratio(cell: str) -> float:
    return float(cell.split()[0])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("method", ["LoRA", "full"])
def test_the_cost_of_a_private_step_is_the_measured_one(method: str, name: str) -> None:
    figures = measured(method.lower(), VARIANTS[name])
    assert shown()[f"{method}, {name}"] == pytest.approx(figures, abs=0.0051)


def test_the_memory_of_lora_is_the_measured_one() -> None:
    match = re.search(r"Peak memory is ([\d.]+) to ([\d.]+) of the plain loop's with LoRA", README)
    assert match is not None
    steps = rows(RESULTS, "Steps, every sequence its own unit")
    memory = [
        float(row[-1]) for row in steps if row[0].startswith("lora") and row[1] == "taciturn, DP"
    ]
    assert [float(each) for each in match.groups()] == pytest.approx(
        [min(memory), max(memory)], abs=0.0051
    )
