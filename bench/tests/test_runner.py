"""The whole suite on tiny shapes: measures, reports, draws."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ElementTree

import pytest

from steps.figure import svg
from steps.model import ModelShape
from steps.registry import GHOST, NAMES, PLAIN, PRIVATE, TRAINER
from steps.report import markdown
from steps.results import Results
from steps.runner import run
from steps.settings import FULL, QUICK, Settings
from support import forkserver

HAS_OPACUS = importlib.util.find_spec("opacus") is not None
TINY = Settings(
    grid=((8, 2),),
    unit_grid=((8, 4),),
    tries=1,
    rounds=2,
    memory_processes=1,
    epoch_records=8,
    epoch_sequences=4,
    epoch_rounds=1,
    growth_sequences=(1, 2, 4),
    growth_rounds=1,
    shape=ModelShape(vocabulary=64, hidden=16, intermediate=24, layers=1, heads=2, context=256),
    only=("lora/T8/units-of-1", "lengths/lora", "growth/full"),
)


@pytest.fixture(scope="module")
def results() -> Results:
    """Of one tiny run."""
    forkserver.start()
    said: list[str] = []
    found = run(TINY, threads=1, say=said.append)
    assert said == ["lora/T8/units-of-1", "lengths/lora", "growth/full"]
    return found


def test_every_variant_has_all_its_numbers(results: Results) -> None:
    assert results.broken() == []
    assert [row.variant for row in results.steps] == list(NAMES)
    for row in results.steps:
        if row.failure is not None:
            assert not HAS_OPACUS
            continue
        assert row.seconds is not None
        assert row.seconds.median > 0
        assert row.flops
        assert row.peak_bytes is not None
    plain, private = results.row(results.steps[0].cell, PLAIN), results.epoch("lora", PRIVATE)
    assert plain is not None
    assert plain.ratio is not None
    assert plain.ratio.median == 1
    assert private is not None
    assert private.tokens_per_second
    assert private.tokens < 8 * 140
    assert results.epoch("lora", TRAINER) is not None
    assert results.growth["full"].tokens == (64, 128, 256)


@pytest.mark.skipif(not HAS_OPACUS, reason="taciturn[bench] is not installed")
def test_how_opacus_takes_tied_weights_is_said(results: Results) -> None:
    assert "Parameter tying is not supported" in results.probes["Opacus ghost"]


def test_report_figure_and_json(results: Results) -> None:
    text = markdown(results, TINY, "figure.svg")
    assert "](figure.svg)" in text
    assert "taciturn, DP" in text
    assert "not measured" in text  # the goals that `only` left out
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    root = ElementTree.fromstring(svg(results))
    assert root.tag.endswith("svg")
    assert json.loads(results.json())["steps"][0]["variant"] == PLAIN


def test_parts_make_the_whole(results: Results) -> None:
    text = results.json()
    steps = Results(machine=results.machine, steps=results.steps, probes=results.probes)
    others = Results(epochs=results.epochs, growth=results.growth, rows=results.rows)
    for parts in ([text], [text, text], [others.json(), steps.json()]):
        assert Results.joined(parts).json() == text


def test_published_settings_cover_the_promise() -> None:
    names = {cell.name for cell in FULL.cells()}
    for method in ("lora", "full"):
        for tokens in (64, 256, 1024, 4096):
            assert {f"{method}/T{tokens}/units-of-{size}" for size in (1, 4)} <= names
    assert {tokens * sequences for tokens, sequences in FULL.grid} == {2048, 4096}
    assert max(FULL.rows) == 5_000_000
    assert FULL.growth_sequences[-1] / FULL.growth_sequences[0] >= 1000
    assert {cell.name for cell in QUICK.cells()} <= names
    assert GHOST in NAMES
