"""The facade: one line fits, what is saved holds nothing private, bad input leaves nothing."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import taciturn
from taciturn.engine.training.loop import TrainingProgress
from taciturn.errors import (
    AdapterError,
    DataError,
    DataNotFoundError,
    MissingColumnError,
    ModelError,
    ModelNotFoundError,
    OutputError,
    PrivacyParameterError,
    RowError,
    SpecError,
    TaciturnError,
    UnknownFieldError,
)
from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.reports.privacy import PrivacyReport
from taciturn.spec import FitFields, FitSpec

MARK = "zyxwvut"
QUICK: dict[str, Any] = {
    "text_field": "text",
    "privacy_unit": "patient",
    "target_epsilon": 8,
    "batch_size": 10,
    "steps": 3,
    "learning_rate": 0.05,
}


def rows(n: int = 40) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient": [f"p{i // 2}" for i in range(n)],
            "text": [f"Patient {MARK} number {i} has a cough." for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path) -> LLM:
    return LLM(str(tiny_llama)).fit(rows(), **QUICK)


@pytest.fixture(scope="module")
def saved(fitted: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted.save(tmp_path_factory.mktemp("saved") / "out")


def test_fit_reports_the_guarantee(fitted: LLM) -> None:
    report = fitted.privacy
    assert report is not None
    assert report.guarantee == "differential privacy"
    assert report.epsilon is not None
    assert report.epsilon <= 8
    assert (report.n_units, report.privacy_unit, report.steps) == (20, "patient", 3)
    assert report.neighbouring_relation == "add or remove one unit"


def test_planning_leaves_the_model_as_it_is(fitted: LLM) -> None:
    """Adapters are attached to measure with: not to the model that was fitted."""
    said = {"temperature": 0.0, "max_new_tokens": 4}
    before = fitted.sample(["Patient"], **said)
    timed = fitted.plan(n_units=500, target_epsilon=3, max_minutes=0.1)
    assert timed.seconds_per_unit is not None
    found = fitted.estimate(n_units=500, target_epsilon=3)
    assert [each.times for each in found.other_times] == [0.5, 1, 2, 4]
    assert found.plan.worth is not None
    assert fitted.sample(["Patient"], **said).equals(before)


def test_the_unit_is_the_column_of_that_name_whatever_its_neighbours(tiny_llama: Path) -> None:
    """ID is a row's number, and id the patient's."""
    data = rows().rename(columns={"patient": "id"})
    data.insert(0, "ID", range(len(data)))
    data.insert(0, "Text", "not this one")
    for unit, n_units in {"id": 20, "ID": 40, "lower(id)": 20, '"ID" // 4': 10}.items():
        for select in (None, '*, upper("Text") AS TEXT', 'id, "ID", text'):
            asked = {**QUICK, "privacy_unit": unit, "select": select}
            assert LLM(str(tiny_llama)).plan(data, **asked).n_units == n_units


def test_samples_carry_the_policy(fitted: LLM) -> None:
    frame = fitted.sample(["The patient", "Cough"], n=2, max_new_tokens=5, seed=1)
    assert list(frame.columns) == ["prompt", "text", "policy"]
    assert list(frame["prompt"]) == ["The patient"] * 2 + ["Cough"] * 2
    assert set(frame["policy"]) == {fitted.policy} == {frame.attrs["policy"]}
    assert "epsilon=" in fitted.policy
    again = fitted.sample(["The patient", "Cough"], n=2, max_new_tokens=5, seed=1)
    pd.testing.assert_frame_equal(frame, again)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("top_p", 0.0), ("max_new_tokens", 0), ("n", 0), ("seed", -1)],
)
def test_bad_sampling_is_refused(tiny_llama: Path, field: str, value: float) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(SpecError, match=f"{field}={value}: .* (greater|less) than"):
        LLM(str(tiny_llama)).sample(["The"], **arguments)


def test_a_damaged_report_is_said(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    report = folder / "privacy_report.json"
    report.write_text(report.read_text()[:200])
    with pytest.raises(ModelError, match=r"privacy_report\.json is damaged or truncated.*put back"):
        LLM(str(folder))


def test_base_model_samples_say_so(tiny_llama: Path) -> None:
    frame = LLM(str(tiny_llama)).sample(["The"], max_new_tokens=2)
    assert "no private data" in frame["policy"][0]


def test_saved_folder_loads_with_peft_and_with_us(
    saved: Path, fitted: LLM, tiny_llama: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(5, 15).unsqueeze(0)
    before = base(ids).logits.detach()
    adapted = peft.PeftModel.from_pretrained(base, str(saved))
    after = adapted(ids).logits.detach()
    assert not torch.allclose(before, after)
    ours = LLM(str(saved))
    assert ours.privacy == fitted.privacy
    prompt = ["The patient"]
    left = ours.sample(prompt, temperature=0, max_new_tokens=8)
    right = fitted.sample(prompt, temperature=0, max_new_tokens=8)
    pd.testing.assert_frame_equal(left, right)


def test_released_files_are_the_allowed_ones(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "privacy_report.json",
        "report.html",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_nothing_private_outside_the_private_folder(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    LLM(str(tiny_llama)).fit(rows(), output=output, **QUICK)
    released = [
        path for path in output.rglob("*") if path.is_file() and "private" not in path.parts
    ]
    assert released
    metrics = [json.loads(line) for line in (output / "private" / "metrics.jsonl").open()]
    secrets = [MARK, *(f"{entry['mean_loss']:.6f}"[:7] for entry in metrics)]
    for path in released:
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, path.name
    assert (output / "private").stat().st_mode & 0o077 == 0
    assert "Do not share" in (output / "private" / "README.txt").read_text()


def test_private_noise_ignores_the_seed(tiny_llama: Path) -> None:
    first, second = (LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "seed": 42}) for _ in range(2))
    prompt, text = "The patient", " has a cough."
    assert first.log_probability(prompt, text) != second.log_probability(prompt, text)


def test_ordinary_fit_is_repeatable_and_has_no_guarantee(tiny_llama: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "target_epsilon": "unlimited", "seed": 7}
    first, second = (LLM(str(tiny_llama)).fit(rows(), **settings) for _ in range(2))
    prompt, text = "The patient", " has a cough."
    assert first.log_probability(prompt, text) == second.log_probability(prompt, text)
    assert first.policy == "no guarantee"
    assert set(first.sample(["The"], max_new_tokens=2)["policy"]) == {"no guarantee"}
    card = (first.save(tmp_path / "out") / "README.md").read_text()
    assert "No guarantee" in card


def test_full_fine_tuning_saves_a_whole_model(tiny_llama: Path, tmp_path: Path) -> None:
    model = LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "method": "full"})
    folder = model.save(tmp_path / "out")
    again = LLM(str(folder))
    prompt, text = "The patient", " has a cough."
    assert again.log_probability(prompt, text) == pytest.approx(
        model.log_probability(prompt, text), abs=1e-4
    )
    scores = again.evaluate(["A public sentence."])
    assert scores.fitted is not None
    assert scores.base.nats_per_token != scores.fitted.nats_per_token


def test_evaluate_compares_base_and_fitted(fitted: LLM, tiny_llama: Path) -> None:
    scores = fitted.evaluate(["The patient has a cough.", "No cough."])
    base = LLM(str(tiny_llama)).evaluate(["The patient has a cough.", "No cough."])
    assert base.fitted is None
    assert scores.base.nats_per_token == pytest.approx(base.base.nats_per_token, rel=1e-5)
    assert scores.fitted is not None
    assert scores.fitted.nats_per_token != scores.base.nats_per_token
    assert scores.base.tokens == base.base.tokens > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dtypes_methods_and_checkpointing(
    tiny_llama: Path, dtype: str, method: str, checkpointing: bool
) -> None:
    model = LLM(str(tiny_llama), dtype=dtype)
    model.fit(rows(), **QUICK, method=method, gradient_checkpointing=checkpointing)
    assert model.privacy is not None
    assert model.sample(["The"], max_new_tokens=2).shape == (1, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epsilon": 3}, UnknownFieldError, "target_epsilon"),
        ({"target_epsilon": 0}, PrivacyParameterError, r"\[0.01, 1000\]"),
        ({"target_epsilon": -1}, PrivacyParameterError, r"\[0.01, 1000\]"),
        ({"target_epsilon": None}, PrivacyParameterError, "not set"),
        ({"delta": 0.05}, PrivacyParameterError, "delta=0.05"),
        ({"batch_size": 21}, PrivacyParameterError, "n_units=20"),
        ({"text_field": "txt"}, MissingColumnError, "text"),
        ({"privacy_unit": "patients"}, DataError, "patient"),
        ({"target_modules": ["nope"], "method": "lora"}, SpecError, "nope"),
        ({"dtype": "float16"}, SpecError, "float16"),
        ({"device": "tpu9"}, SpecError, "tpu9"),
    ],
)
def test_bad_settings_are_refused_and_leave_nothing(
    tiny_llama: Path,
    tmp_path: Path,
    change: dict[str, Any],
    error: type[TaciturnError],
    message: str,
) -> None:
    output = tmp_path / "out"
    with pytest.raises(error, match=message):
        LLM(str(tiny_llama)).fit(rows(), output=output, **{**QUICK, **change})
    assert not output.exists()


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (pd.DataFrame({"patient": ["a", None], "text": [f"{MARK} x", "y"]}), RowError),
        (pd.DataFrame({"patient": ["a", "b"], "text": [f"{MARK} x", ""]}), RowError),
        (pd.DataFrame({"patient": ["a", "b"], "text": [f"{MARK} x", None]}), RowError),
        (pd.DataFrame({"patient": ["a", "b"], "text": [1, 2]}), RowError),
        (pd.DataFrame({"patient": [], "text": []}), DataError),
    ],
)
def test_bad_rows_are_refused_without_being_quoted(
    tiny_llama: Path, tmp_path: Path, frame: pd.DataFrame, error: type[TaciturnError]
) -> None:
    output = tmp_path / "out"
    with pytest.raises(error) as caught:
        LLM(str(tiny_llama)).fit(frame, output=output, **{**QUICK, "batch_size": 1})
    assert MARK not in str(caught.value)
    assert not output.exists()


def test_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="check the path"):
        LLM(str(tmp_path / "nothing")).sample(["x"])
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        LLM(str(tmp_path)).sample(["x"])
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        LLM("nobody/no-such-model").sample(["x"])
    with pytest.raises(ModelNotFoundError, match="GGUF"):
        LLM(str(tmp_path / "x.gguf")).sample(["x"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x10"),
        ("config.json", b'{"model_type": "nobody-knows"}'),
        ("config.json", b"{"),
        ("tokenizer.json", b"{"),
    ],
)
def test_model_that_is_damaged(tiny_llama: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be loaded: .+; it must be a causal language"):
        LLM(str(folder)).sample(["x"])


def test_data_that_is_not_there(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError):
        LLM(str(tiny_llama)).fit(str(tmp_path / "no.jsonl"), **QUICK)


def test_output_that_is_taken(tiny_llama: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already holds a fitted model"):
        LLM(str(tiny_llama)).fit(rows(), output=saved, **QUICK)
    (tmp_path / "thesis.txt").write_text("do not overwrite")
    with pytest.raises(OutputError, match="is not empty"):
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path, **QUICK)
    assert (tmp_path / "thesis.txt").read_text() == "do not overwrite"


def test_ctrl_c_promises_a_way_on_only_where_there_is_one(tiny_llama: Path, tmp_path: Path) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.step == 1:
            signal.raise_signal(signal.SIGINT)

    observer = Observer(on_progress=stop)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1; without output="):
        LLM(str(tiny_llama)).fit(rows(), observer=observer, **QUICK)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "out", observer=observer, **QUICK)
    model = LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "out", resume=True, **QUICK)
    assert model.privacy is not None


def test_saving_and_fitting_twice(saved: Path, fitted: LLM, tiny_llama: Path) -> None:
    with pytest.raises(AdapterError, match="call fit first"):
        LLM(str(tiny_llama)).save(saved)
    with pytest.raises(AdapterError, match="already holds"):
        fitted.save(saved)
    with pytest.raises(ModelError, match="already fitted"):
        fitted.fit(rows(), **QUICK)


def test_full_disk_while_saving_leaves_nothing_half_written(
    fitted: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(LLM("x")), "policy", property(lambda self: "unused"))
    monkeypatch.setattr(PrivacyReport, "model_dump_json", full)
    with pytest.raises(OutputError, match="No space left on device"):
        fitted.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_keyword_arguments_are_the_fields_of_the_spec() -> None:
    assert set(FitFields.__annotations__) == set(FitSpec.model_fields)


def test_the_line_of_the_readme(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.parquet"
    rows().rename(columns={"patient": "patient_id"}).to_parquet(path)
    model = taciturn.LLM(str(tiny_llama))
    model.fit(str(path), text_field="text", privacy_unit="patient_id", target_epsilon=3, epochs=3)
    assert model.privacy is not None
    assert model.sample(["The patient suffers"] * 5, temperature=0.1).shape == (5, 3)
