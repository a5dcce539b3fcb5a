"""What enters the engine is what the docstring says: spikes, on disk, by the path of a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from support.ranks import in_threads
from taciturn.engine.auditing.claim import DpSgdRun
from taciturn.engine.auditing.gradient_canaries import (
    CanaryRows,
    Engine,
    EngineSettings,
    attack,
    write_canaries,
)
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, sum_parts
from taciturn.engine.training.batch import BatchLimits, microbatches

SILENT = 1e-3
LIMITS = BatchLimits(tokens=512, units=256, max_tokens=2)


def coins(canaries: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random(canaries) < 0.5


@pytest.mark.parametrize("records", [1, 3])
def test_data_holds_a_unit_for_every_canary(tmp_path: Path, records: int) -> None:
    included = coins(9)
    data = write_canaries(tmp_path, included, records)
    assert data.n_units == 9
    for unit, here in enumerate(included):
        assert len(data.records(unit)) == records
        for record in data.records(unit):
            assert record.input_ids.tolist() == [unit, unit]
            assert record.targets.tolist() == [False, here]


@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS])
def test_a_gradient_is_a_spike_on_its_own_row(tmp_path: Path, form: Form) -> None:
    included = coins(9)
    data = write_canaries(tmp_path, included, 2)
    rows = CanaryRows(9, loudness=50.0)
    torch.nn.init.normal_(rows.rows_M1)
    (group,) = microbatches(data, np.arange(9), LIMITS)
    gradients = per_example_gradients(rows, *group, form).dense()["rows_M1"]
    expected = torch.diag(torch.from_numpy(included).float() * 2 * 50.0)
    torch.testing.assert_close(gradients.squeeze(-1)[:9], expected)
    assert not gradients[9:].any(), "fillers have none"


def test_a_canary_of_many_records_is_spread_over_parts_and_added_up(tmp_path: Path) -> None:
    data = write_canaries(tmp_path, np.array([True]), 5)
    (group,) = microbatches(data, np.arange(1), BatchLimits(tokens=4, units=9, max_tokens=2))
    assert len(group) == 3
    assert sum_parts(CanaryRows(1, 2.0), group).dense()["rows_M1"].item() == 10.0


SETTINGS = {
    "one step": EngineSettings(DpSgdRun(1.0, SILENT, 1)),
    "three steps": EngineSettings(DpSgdRun(1.0, SILENT, 3)),
    "samples": EngineSettings(DpSgdRun(0.5, SILENT, 8)),
    "another norm": EngineSettings(DpSgdRun(1.0, SILENT, 1), l2_clip_norm=0.03),
    "instantiated": EngineSettings(DpSgdRun(1.0, SILENT, 1), form=Form.INSTANTIATE),
    "parts": EngineSettings(
        DpSgdRun(1.0, SILENT, 1),
        records_per_unit=5,
        limits=BatchLimits(tokens=4, units=3, max_tokens=2),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_without_noise_to_speak_of_every_coin_is_seen(name: str) -> None:
    included = coins(64)
    evidence = attack(SETTINGS[name], included, Engine())
    seen = evidence > 0
    if name == "samples":  # a canary may join none of eight steps
        assert not seen[~included].any()
        assert stats.binom.cdf(seen.sum(), included.sum(), 1 - 2**-8) > 1e-9
    else:
        assert (seen == included).all()


@pytest.mark.statistical
def test_evidence_has_the_law_of_the_proof() -> None:
    """At one step of all units it is (x - 1/2) / s^2, with x from N(0, s^2) or N(1, s^2)."""
    sigma, included = 0.5, coins(4000)
    evidence = attack(EngineSettings(DpSgdRun(1.0, sigma, 1)), included, Engine())
    shown = evidence * sigma**2 + 0.5
    for mean, here in ((0.0, ~included), (1.0, included)):
        assert stats.kstest(shown[here], "norm", (mean, sigma)).pvalue > 1e-8
        assert stats.kstest(shown[here], "norm", (mean + 0.3, sigma)).pvalue < 1e-8


def test_all_ranks_find_the_same() -> None:
    included = coins(50)
    settings = EngineSettings(DpSgdRun(1.0, SILENT, 2))
    found = in_threads(2, lambda ranks: attack(settings, included, Engine(), ranks))
    assert ((found[0] > 0) == included).all()
    np.testing.assert_array_equal(found[0], found[1])


def test_too_few_canaries_for_the_sampling() -> None:
    with pytest.raises(ValueError, match="use at least 1000"):
        EngineSettings(DpSgdRun(0.001, 1.0, 1)).mechanism(Engine(), 100)
