"""A resumed run is the run that was begun: nothing that it promises comes from the later call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from support.recording import OperationRecorder
from taciturn.engine.model.load import load_base
from taciturn.engine.training import graphs, loop
from taciturn.engine.training.public import PublicStage
from taciturn.engine.training.run_record import RunRecord
from taciturn.errors import CheckpointError, DataError, SpecError
from taciturn.llm import LLM
from taciturn.local import estimate, fit
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.privacy import PrivacyReport
from taciturn.spec import FitSpec

SETTINGS: dict[str, Any] = {
    "text_field": "text",
    "target_epsilon": 8,
    "batch_size": 6,
    "steps": 3,
    "method": "lora",
    "r": 2,
    "checkpoint_every": 1,
    "max_tokens": 24,
}


class StoppedError(Exception):
    """In the middle of a run."""


def stop(_: object) -> None:
    raise StoppedError


def rows(n: int = 24) -> pd.DataFrame:
    text = [f"patient {i} had a cough" for i in range(n)]
    return pd.DataFrame({"text": text, "id": [f"p{i // 2}" for i in range(n)], "other": text})


def begin(model: LLM, output: Path, **fields: Any) -> None:
    """A run that ends in its second step, with a checkpoint of the first."""
    observer = Observer(on_progress=lambda progress: progress.step < 2 or stop(progress))
    with pytest.raises(StoppedError):
        model.fit(rows(), output=output, observer=observer, **{**SETTINGS, **fields})


def resume(model: LLM, output: Path, data: object = None, **fields: Any) -> PrivacyReport:
    given = rows() if data is None else data
    report = model.fit(given, output=output, resume=True, **{**SETTINGS, **fields}).privacy
    assert report is not None
    assert PrivacyReport.model_validate_json((output / "privacy_report.json").read_text()) == report
    return report


@pytest.fixture(scope="module")
def interrupted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    begin(LLM(str(tiny_llama)), output)
    return output


@pytest.fixture
def output(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "out"))


@pytest.mark.parametrize(
    "other",
    [
        {"privacy_unit": "id"},
        {"select": "text, id"},
        {"text_field": "other"},
        {"max_records_per_unit": 2},
        {"max_tokens": 23},
        {"seed": 1},
        {"target_epsilon": 7},
        {"target_epsilon": "unlimited"},
        {"delta": 1e-5},
        {"l2_clip_norm": 0.5},
        {"batch_size": 5},
        {"steps": 4},
        {"learning_rate": 1e-5},
        {"r": 3},
        {"alpha": 3.0},
        {"target_modules": ("q_proj",)},
        {"method": "full", "r": None},
        {"canaries": 10},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_setting_is_refused(other: dict[str, Any], tiny_llama: Path, output: Path) -> None:
    before = sorted(path.name for path in output.iterdir())
    with pytest.raises(CheckpointError):
        resume(LLM(str(tiny_llama)), output, **other)
    assert sorted(path.name for path in output.iterdir()) == before
    assert not (output / "private" / "data-again").exists()


def test_other_rows_are_refused(tiny_llama: Path, output: Path) -> None:
    for other in (rows(22), rows().assign(text="a cough"), rows().iloc[::-1]):
        with pytest.raises(CheckpointError, match="rows are not those"):
            resume(LLM(str(tiny_llama)), output, data=other)


def test_the_same_call_goes_on_and_reports_what_was_prepared(
    tiny_llama: Path, output: Path
) -> None:
    report = resume(LLM(str(tiny_llama)), output)
    assert (report.privacy_unit, report.n_units, report.steps) == ("one record", 24, 3)
    (step,) = report.private_steps
    assert (step.privacy_unit, step.n_units) == ("one record", 24)
    card = (output / "README.md").read_text()
    assert "unit=one record" in card


def test_the_unit_is_that_of_the_data_even_if_nobody_compares(
    tiny_llama: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "check_prepared", lambda *_: None)
    report = resume(LLM(str(tiny_llama)), output, privacy_unit="id")
    assert (report.privacy_unit, report.n_units) == ("one record", 24)
    assert {step.privacy_unit for step in report.private_steps} == {"one record"}


def test_another_base_model_is_refused(tiny_llama: Path, output: Path, tmp_path: Path) -> None:
    """Of the same shapes, which no checkpoint could tell."""
    from transformers import AutoModelForCausalLM

    other = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    moved = Path(shutil.copytree(tiny_llama, tmp_path / "moved"))
    model = AutoModelForCausalLM.from_pretrained(other)
    model.get_input_embeddings().weight.data.add_(0.1)
    model.save_pretrained(other)
    with pytest.raises(CheckpointError, match="base model"):
        resume(LLM(str(other)), output)
    assert resume(LLM(str(moved)), output).n_units == 24  # the same files elsewhere


def test_what_was_spent_before_is_not_forgotten(tiny_llama: Path, tmp_path: Path) -> None:
    """A process that resumes need not know of the evaluation that the run was begun after."""
    model = LLM(str(tiny_llama))
    model.evaluate(rows(), text_field="text", target_epsilon=1, delta=1e-3)
    begin(model, tmp_path / "out")
    report = resume(LLM(str(tiny_llama)), tmp_path / "out")
    assert [step.purpose for step in report.private_steps] == ["evaluate", "fit"]
    assert report.epsilon is not None
    assert report.epsilon > 8


def test_a_further_fit_is_resumed_from_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    """What the other one had spent would be lost, and its weights are not those."""
    for name in ("first", "second"):
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path / name, **{**SETTINGS, "steps": 1})
    further = {"r": None}
    begin(LLM(str(tmp_path / "first")), tmp_path / "out", **further)
    for other in (tmp_path / "second", tiny_llama):
        with pytest.raises(CheckpointError, match="another model"):
            resume(LLM(str(other)), tmp_path / "out", **further)
    first = LLM(str(tmp_path / "first"))
    first.evaluate(rows(), text_field="text", target_epsilon=1, delta=1e-3)
    report = resume(first, tmp_path / "out", **further)
    assert [step.purpose for step in report.private_steps] == ["fit", "evaluate", "fit"]


def test_what_a_run_was_begun_with_must_be_readable(tiny_llama: Path, output: Path) -> None:
    path = output / "private" / "begun.json"
    found = json.loads(path.read_text())
    assert RunRecord.model_validate(found).spent == ()
    for damage in ("{}", ""):
        path.write_text(damage)
        with pytest.raises(CheckpointError, match="begin anew"):
            resume(LLM(str(tiny_llama)), output)


def test_units_of_one_name_that_are_not_the_same_do_not_compose(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """`patient` was made of another column: no one epsilon is about both."""
    selected = {"select": "text, id AS patient", "privacy_unit": "patient", "delta": 1e-3}
    first = {**SETTINGS, **selected, "steps": 1}
    model = LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "first", **first)
    assert model.privacy is not None
    assert model.privacy.privacy_unit == "patient, where patient = id"
    other = {"select": "text, other AS patient"}
    with pytest.raises(SpecError, match="differs from 'patient, where patient = id'"):
        model.evaluate(rows(), text_field="text", target_epsilon=1, **{**selected, **other})
    with pytest.raises(SpecError, match="no one epsilon"):
        LLM(str(tmp_path / "first")).fit(rows(), **{**first, **other, "r": None})
    again = {**selected, "select": "id AS patient, upper(text) AS text"}
    model.evaluate(rows(), text_field="text", target_epsilon=1, **again)
    assert len(model.privacy.private_steps) == 2


TIMED: dict[str, Any] = {**SETTINGS, "steps": None, "max_minutes": 0.01}


def timed(patch: pytest.MonkeyPatch, *seconds: float) -> list[str]:
    """Each measurement finds the next of these; returns what happened, in order."""
    happened, left = list[str](), list(seconds)
    prepare = fit.prepare

    def measured(*_: object) -> float:
        happened.append("measured")
        return left.pop(0)

    def read(*given: Any) -> Any:
        happened.append("read")
        return prepare(*given)

    patch.setattr(estimate, "measured_seconds_per_unit", measured)
    patch.setattr(fit, "prepare", read)
    return happened


def test_the_speed_is_measured_before_a_row_is_read(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = timed(monkeypatch, 0.03)
    plans: list[TrainingPlan] = []
    model = LLM(str(tiny_llama))
    model.fit(rows(), output=tmp_path / "out", observer=Observer(plans.append), **TIMED)
    assert happened == ["measured", "read"]
    assert plans[0].seconds_per_unit == 0.03
    assert (plans[0].batch_size, plans[0].steps) == (6, 3)  # 0.6 s at 0.03 s: 20 units
    assert model.privacy is not None
    assert model.privacy.steps == 3


def test_a_resumed_run_keeps_its_plan(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast the machine is meanwhile."""
    happened = timed(monkeypatch, 0.03, 0.001)
    output = tmp_path / "out"
    begin(LLM(str(tiny_llama)), output, **TIMED)
    assert resume(LLM(str(tiny_llama)), output, **TIMED).steps == 3
    assert happened == ["measured", "read"]
    assert RunRecord.read(output / "private").seconds_per_unit == 0.03


def test_a_resumed_run_keeps_all_that_was_measured(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 0.03, 0.001)
    output, fields = tmp_path / "out", {**TIMED, "public_data": PUBLIC}
    begin(LLM(str(tiny_llama)), output, **fields)
    begun = RunRecord.read(output / "private")
    assert (begun.seconds_per_unit, begun.rate_factor is None) == (0.03, False)
    assert resume(LLM(str(tiny_llama)), output, **fields).steps == 3


def test_a_limit_belongs_to_a_run_that_began_with_one(
    tiny_llama: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="begun without max_minutes; leave it out"):
        resume(LLM(str(tiny_llama)), output, **TIMED)
    timed(monkeypatch, 0.03)
    begin(LLM(str(tiny_llama)), tmp_path / "timed", **TIMED)
    with pytest.raises(CheckpointError):
        resume(LLM(str(tiny_llama)), tmp_path / "timed", **{**TIMED, "max_minutes": 0.02})


def test_a_limit_that_is_too_short_leaves_nothing_behind(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 5.0)
    with pytest.raises(SpecError, match=r"give at least max_minutes=0\.5"):
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "out", **TIMED)
    assert not (tmp_path / "out").exists()


def test_of_several_processes_the_slowest_counts(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 0.03)

    class Two:
        size = 2

        def numbers(self, own: list[float]) -> list[list[float]]:
            return [own, [0.08]]

    spec = FitSpec(target_epsilon=8, max_minutes=1, method="lora", r=2, microbatch_tokens=64)
    base: Any = SimpleNamespace(context_length=64, vocabulary=100, device="cpu")
    found = fit.measured_speed(base, spec, None, Two())  # type: ignore[arg-type]
    assert found.seconds_per_unit == 0.04


def test_the_very_speed_of_this_device(tiny_llama: Path) -> None:
    spec = FitSpec(target_epsilon=8, max_minutes=1, method="lora", r=2)
    base = load_base(str(tiny_llama), spec)
    speed = estimate.measured_speed(base, spec, estimate.attached_loss(base, spec))
    assert 1e-6 < speed.seconds_per_unit < 1
    assert speed.seconds_per_unit == float(f"{speed.seconds_per_unit:.2g}")
    assert "64 of them a unit" in speed.basis


PUBLIC = [f"Case {i}: a man with a fever" for i in range(40)]


@pytest.fixture(scope="module")
def begun_with_public(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("public") / "out"
    begin(LLM(str(tiny_llama)), output, public_data=PUBLIC)
    return output


def test_a_run_with_public_text_goes_on_with_the_same(
    begun_with_public: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rate that was found, and without another ordinary fit: its weights are not those."""
    output = Path(shutil.copytree(begun_with_public, tmp_path / "out"))
    for other in ({}, {"public_data": ["A sprain.", *PUBLIC[1:]]}):
        with pytest.raises(CheckpointError, match=r"begun with public_data [0-9a-f]{16}, this"):
            resume(LLM(str(tiny_llama)), output, **other)
    with pytest.raises(CheckpointError, match="learning_rate"):
        resume(LLM(str(tiny_llama)), output, public_data=PUBLIC, learning_rate=0.5)
    for name in ("rate_factor", "fit"):
        monkeypatch.setattr(PublicStage, name, None)  # not called
    report = resume(LLM(str(tiny_llama)), output, public_data=PUBLIC)
    assert [text.records for text in report.public_data] == [40]
    factor = RunRecord.read(output / "private").rate_factor
    identity = json.loads(
        next((output / "private/checkpoints").glob("*/identity.json")).read_text()
    )
    plan = LLM(str(tiny_llama)).plan(n_units=24, **SETTINGS)
    assert identity["learning_rate"] == pytest.approx(plan.learning_rate * (factor or 0))


def test_what_is_public_is_told_everywhere_and_spends_nothing(
    tiny_llama: Path, tmp_path: Path
) -> None:
    plans: list[TrainingPlan] = []
    model = LLM(str(tiny_llama)).fit(
        rows(),
        output=tmp_path / "first",
        public_data=PUBLIC,
        observer=Observer(on_plan=plans.append),
        **SETTINGS,
    )
    assert "simulated private fits on the public text" in plans[0].reasons[-1]
    report = model.privacy
    assert report is not None
    assert [step.purpose for step in report.private_steps] == ["fit"]
    assert report.epsilon is not None
    assert report.epsilon <= 8
    (text,) = report.public_data
    card = (tmp_path / "first" / "README.md").read_text()
    assert "public text that was learned from first, 40 records" in card
    for said in (card, (tmp_path / "first" / "report.html").read_text()):
        assert text.sha256 in said
        assert "declares that this text is public" in said
    further = {**SETTINGS, "r": None, "steps": 1, "learning_rate": 0.01}
    again = LLM(str(tmp_path / "first")).fit(rows(), public_data=PUBLIC[:30], **further).privacy
    assert again is not None
    assert [each.records for each in again.public_data] == [40, 30]


def test_the_private_fit_begins_with_what_was_learned_from_public_text(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for kind, name in ((PublicStage, "rate_factor"), (PublicStage, "fit"), (fit, "train")):
        real = getattr(kind, name)

        def noted(*given: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            order.append(name)
            return real(*given, **more)

        monkeypatch.setattr(kind, name, noted)
    LLM(str(tiny_llama)).fit(rows(), public_data=PUBLIC, **SETTINGS)
    assert order == ["rate_factor", "fit", "train"]
    order.clear()
    LLM(str(tiny_llama)).fit(rows(), public_data=PUBLIC, **{**SETTINGS, "learning_rate": 0.01})
    LLM(str(tiny_llama)).fit(
        rows(), public_data=PUBLIC, **{**SETTINGS, "target_epsilon": "unlimited"}
    )
    assert order == ["fit", "train"] * 2


def test_private_data_are_not_public(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    rows().to_csv(path, index=False)
    frame = rows()
    (tmp_path / "link.csv").symlink_to(path)
    for data, public in ((frame, frame), (str(path), str(tmp_path / "link.csv"))):
        with pytest.raises(SpecError, match="public_data is the private data"):
            LLM(str(tiny_llama)).fit(data, output=tmp_path / "out", public_data=public, **SETTINGS)
    with pytest.raises(DataError, match="at least 20"):
        LLM(str(tiny_llama)).fit(frame, output=tmp_path / "out", public_data=PUBLIC[:3], **SETTINGS)
    assert not (tmp_path / "out").exists()


PATIENTS = {"privacy_unit": "id", "max_records_per_unit": 2}


@pytest.mark.parametrize(
    ("recorder", "units", "shapes"),
    [(None, {}, 0), (OperationRecorder(), {}, 3), (OperationRecorder(), PATIENTS, 6)],
)
def test_a_run_says_how_its_microbatches_are_computed(
    recorder: OperationRecorder | None,
    units: dict[str, Any],
    shapes: int,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its private journal; on a device that records nothing, asking for it does nothing."""
    for module in (graphs, loop):
        monkeypatch.setattr(module, "recorder_of", lambda device: recorder)
    LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "out", cuda_graphs=True, **SETTINGS, **units)
    lines = (tmp_path / "out" / "private" / "journal.jsonl").read_text().splitlines()
    told = json.loads(lines[0])["microbatches"]
    # 24 tokens at most: padded to 16, 20 or 24; one or two records each.
    recorded = f"CUDA graphs of {shapes} shapes of microbatches"
    assert told == (recorded if recorder else str(graphs.NO_GRAPHS))
