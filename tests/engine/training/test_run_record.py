"""A run that is resumed has the base, the model and the history that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import released_files
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.engine.training.run_record import RunRecord, digest_of
from taciturn.errors import CheckpointError
from taciturn.reports.privacy import LedgerTotal, PrivacyReport, PrivateStep

EVENT = event_to_dict(dpsgd_event(sampling_probability=0.1, noise_multiplier=1.0, steps=5))
FILES = {"model.safetensors": "a" * 64, "config.json": "b" * 64}


def step(commitment: str, purpose: str = "fit") -> PrivateStep:
    return PrivateStep(
        purpose=purpose,
        dp_event=EVENT,
        privacy_unit="id",
        max_records_per_unit=1,
        n_units=9,
        dataset_commitment=commitment,
    )


def begun(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "run": "r",
        "base_model": "base",
        "base_model_sha256": FILES,
        "earlier": None,
        "spent": (),
    }
    return RunRecord(**{**fields, **changes})


def report(*steps: PrivateStep, **changes: Any) -> PrivacyReport:
    return released_files.report(private_steps=steps, base_model="base", **changes)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    begun(spent=(step("1"),)).write(tmp_path)
    assert RunRecord.read(tmp_path) == begun(spent=(step("1"),))
    assert begun().resumed_as(begun(run="another process")).run == "r"


@pytest.mark.parametrize(
    "other",
    [
        {"base_model": "elsewhere/base"},
        {"base_model_sha256": {**FILES, "tokenizer.json": "c" * 64}},
        {"base_model_sha256": {"model.safetensors": "a" * 64}},
        {"base_model_sha256": {}},
    ],
)
def test_the_same_base_may_be_somewhere_else(other: dict[str, Any]) -> None:
    assert begun().resumed_as(begun(**other)) == begun()


@pytest.mark.parametrize(
    "other",
    [
        {"base_model_sha256": {**FILES, "model.safetensors": "c" * 64}},
        {"base_model_sha256": {**FILES, "config.json": "c" * 64}},
        {"base_model_sha256": {"config.json": "b" * 64, "model.gguf": "a" * 64}},
        {"base_model": "other", "base_model_sha256": {}},
    ],
)
def test_another_base_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="base model"):
        begun().resumed_as(begun(**other))


def test_what_was_spent_is_what_either_knows_of() -> None:
    first, second = step("1", "evaluate"), step("2", "evaluate")
    for asked in ((), (first,)):
        assert begun(spent=(first,)).resumed_as(begun(spent=asked)).spent == (first,)
    resumed = begun(spent=(first,)).resumed_as(begun(spent=(first, second)))
    assert resumed.spent == (first, second)


def test_a_model_is_named_by_its_fits() -> None:
    """Whatever was spent on looking at it since."""
    name = digest_of(report(step("1")))
    total = LedgerTotal(epsilon=9, delta=1e-6, runs=4, without_guarantee=0)
    later = report(step("1"), step("2", "evaluate"), epsilon=4.0, ledger=total)
    assert digest_of(later) == name
    assert digest_of(report(step("3"))) != name
    assert digest_of(report(step("1"), step("3"))) != name
    with pytest.raises(CheckpointError, match="another model"):
        begun(earlier=name).resumed_as(begun())
