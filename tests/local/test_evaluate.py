"""Evaluation through the facade: exact where public, charged where private."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from taciturn.certificate.keygen import KeyFiles
from taciturn.certificate.keys import read_trust
from taciturn.certificate.statement import CertifiedAudit
from taciturn.certificate.verify import Folders, verify_file
from taciturn.engine.generation.synthetic import read_metadata
from taciturn.errors import (
    AdapterError,
    CertificateError,
    DataError,
    GuaranteeError,
    ModelError,
    OutputError,
    PrivacyParameterError,
    SigningKeyError,
    SpecError,
    TaciturnError,
    UnknownFieldError,
)
from taciturn.llm import LLM
from taciturn.local.release import released_figures
from taciturn.reports.figures import Figure
from taciturn.spec import DownstreamFields, DownstreamSpec, EvaluateFields, EvaluateSpec

QUICK: dict[str, Any] = {
    "text_field": "text",
    "privacy_unit": "patient",
    "target_epsilon": 8,
    "batch_size": 10,
    "steps": 3,
    "learning_rate": 0.05,
}
PRIVATE: dict[str, Any] = {"text_field": "text", "privacy_unit": "patient", "target_epsilon": 1}


def rows(n: int = 40) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient": [f"p{i // 2}" for i in range(n)],
            "text": [
                f"Patient number {i} has a {'cough' if i % 2 else 'fever'}." for i in range(n)
            ],
            "label": ["cough" if i % 2 else "fever" for i in range(n)],
        }
    )


def verified(folder: Path, key: KeyFiles) -> Any:
    path = folder / "certificate.json"
    found = verify_file(path, read_trust(key.trust), Folders(model=folder))
    return found.statement.predicate.guarantee


def on_disk(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "privacy_report.json").read_text())
    return value


def page(folder: Path) -> str:
    return html.unescape((folder / "report.html").read_text(encoding="utf-8"))


def test_a_signed_fit_is_certified(original: Path, key: KeyFiles, tiny_llama: Path) -> None:
    trust = read_trust(key.trust)
    folders = Folders(original, tiny_llama, original / "private")
    found = verify_file(original / "certificate.json", trust, folders)
    (step,) = found.statement.predicate.guarantee.steps
    assert (step.purpose, step.n_units) == ("fit", 20)
    assert LLM(str(original)).certificate() == found.statement


def test_public_text_costs_nothing(folder: Path) -> None:
    model = LLM(str(folder))
    before = on_disk(folder)
    result = model.evaluate(["The patient has a cough.", "No fever."])
    assert result.basis == "public"
    assert result.epsilon is None
    assert 0 <= result.base.token_accuracy <= 1
    assert on_disk(folder) == before


def test_public_figures_are_kept_and_the_certificate_holds_without_a_key(
    folder: Path, key: KeyFiles, tmp_path: Path
) -> None:
    assert "What the model is worth" not in page(folder)
    assert not (folder / "evaluations.json").exists()
    model = LLM(str(folder))
    result = model.evaluate(["The patient has a cough.", "No fever."])
    (kept,) = released_figures(folder).evaluations
    assert (kept.basis, kept.n_units, kept.epsilon) == ("public", 2, None)
    assert kept.base.nats_per_token == Figure(value=result.base.nats_per_token)
    assert result.fitted is not None
    assert f"{result.fitted.nats_per_token:.3f}" in page(folder)
    verified(folder, key)
    saved = LLM(str(folder)).save(tmp_path / "copy")
    assert released_figures(saved) == released_figures(folder)
    assert page(saved) == page(folder)


def test_figures_go_where_they_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    LLM(str(folder)).evaluate(["No fever."])
    assert not (folder / "evaluations.json").exists()


def test_damaged_figures_are_named(folder: Path) -> None:
    (folder / "evaluations.json").write_text('{"evaluations": [')
    with pytest.raises(ModelError, match=r"evaluations.json is damaged or truncated; remove it"):
        LLM(str(folder))


def test_private_units_are_paid_for(folder: Path, key: KeyFiles) -> None:
    model = LLM(str(folder))
    assert model.privacy is not None
    first = model.privacy.epsilon
    assert first is not None
    result = model.evaluate(rows(60), signing_key=str(key.private), **PRIVATE)
    assert (result.basis, result.epsilon) == ("differential privacy", 1)
    assert result.fitted is not None
    total = model.privacy.epsilon
    assert total is not None
    assert first < total < first + 1.01
    assert on_disk(folder)["epsilon"] == total
    assert f"{total:.4g}" in (folder / "README.md").read_text()
    (kept,) = released_figures(folder).evaluations
    assert (kept.basis, kept.n_units, kept.epsilon) == ("differential privacy", 30, 1)
    assert kept.fitted is not None
    assert kept.fitted.nats_per_token.std > 0
    for words in (f"ε\u00a0=\u00a0{total:.4g}", f"{total:.4g}</td>", "On 30 private units"):
        assert words in page(folder)
    guarantee = verified(folder, key)
    assert [step.purpose for step in guarantee.steps] == ["fit", "evaluate"]
    assert guarantee.epsilon == total
    assert LLM(str(folder)).policy == model.policy
    (opening,) = (folder / "private").glob("evaluation-*")
    Folders(private=opening)
    verify_file(
        folder / "certificate.json", read_trust(key.trust), Folders(folder, private=opening)
    )


def test_exact_private_figures_only_when_asked(folder: Path) -> None:
    model = LLM(str(folder))
    before = on_disk(folder), page(folder)
    shown = model.evaluate(rows(), text_field="text", show_private=True)
    fields: dict[str, Any] = {"text_field": "text", "label_field": "label", "show_private": True}
    model.downstream(rows(30), rows(), **fields)
    assert "owner" in shown.basis
    assert (on_disk(folder), page(folder)) == before
    assert not (folder / "evaluations.json").exists()


def test_noise_is_fresh_and_exact_figures_stay_in(tiny_llama: Path) -> None:
    # Little noise and a wide bound: a figure cut to its bound would be the same twice.
    asked = {**PRIVATE, "target_epsilon": 100, "loss_bound": 20}
    results = [LLM(str(tiny_llama)).evaluate(rows(), **asked) for _ in range(2)]
    exact = LLM(str(tiny_llama)).evaluate(rows(), text_field="text")
    figures = {result.base.nats_per_token for result in [*results, exact]}
    assert len(figures) == 3


def test_what_the_base_spent_is_composed_into_the_fit(tiny_llama: Path, tmp_path: Path) -> None:
    model = LLM(str(tiny_llama))
    model.evaluate(rows(), **PRIVATE)
    model.fit(rows(), **QUICK)
    assert model.privacy is not None
    assert [step.purpose for step in model.privacy.spent] == ["evaluate", "fit"]
    assert model.privacy.epsilon is not None
    assert model.privacy.epsilon > 8


def test_a_certificate_that_could_not_be_renewed_stops_it(folder: Path) -> None:
    before = (folder / "certificate.json").read_bytes()
    with pytest.raises(CertificateError, match="no key to sign it anew"):
        LLM(str(folder)).evaluate(rows(), **PRIVATE)
    assert (folder / "certificate.json").read_bytes() == before
    assert len(on_disk(folder)["private_steps"]) == 1


def test_an_interrupted_renewal_never_shows_less_than_was_spent(
    folder: Path, key: KeyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[str] = []

    def failing(source: Path, target: Path, replace: Any = os.replace) -> None:
        if replaced:
            raise OSError(28, "No space left on device")
        replaced.append(Path(target).name)
        replace(source, target)

    before = on_disk(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OutputError, match="No space left"):
            LLM(str(folder)).evaluate(rows(), signing_key=str(key.private), **PRIVATE)
    assert replaced == ["report.html"]
    assert ">evaluate</th>" in page(folder)
    assert on_disk(folder) == before
    verified(folder, key)


def test_two_processes_cannot_forget_each_other(folder: Path, key: KeyFiles) -> None:
    first, second = LLM(str(folder)), LLM(str(folder))
    first.evaluate(rows(), signing_key=str(key.private), **PRIVATE)
    with pytest.raises(GuaranteeError, match="changed meanwhile"):
        second.evaluate(rows(), signing_key=str(key.private), **PRIVATE)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target_epsilon": 0.001}, PrivacyParameterError, r"\[0.01, 1000\]"),
        ({"target_epsilon": "unlimited"}, SpecError, "show_private=True"),
        ({"target_epsilon": 1, "show_private": True}, SpecError, "exclude each other"),
        ({"delta": 1e-5}, SpecError, "goes with target_epsilon"),
        ({"target_epsilon": 1, "delta": 0.5}, PrivacyParameterError, "1/n_units"),
        ({"target_epsilon": 1, "privacy_unit": "label"}, SpecError, "differs from 'patient'"),
        ({"samples": 3}, SpecError, "too few"),
        ({"target_epsilonn": 3}, UnknownFieldError, "target_epsilon"),
        ({"steps": 3}, UnknownFieldError, "steps"),
        ({"loss_bound": 0.0}, SpecError, "loss_bound"),
    ],
)
def test_bad_settings_cost_nothing(
    folder: Path, key: KeyFiles, fields: dict[str, Any], error: type[TaciturnError], message: str
) -> None:
    arguments = {"text_field": "text", "privacy_unit": "patient"} | fields
    with pytest.raises(error, match=message):
        LLM(str(folder)).evaluate(rows(), signing_key=str(key.private), **arguments)
    assert len(on_disk(folder)["private_steps"]) == 1


@pytest.mark.parametrize("private", [False, True])
def test_samples_beside_a_reference(folder: Path, key: KeyFiles, private: bool) -> None:
    fields: dict[str, Any] = PRIVATE if private else {"text_field": "text"}
    result = LLM(str(folder)).evaluate(
        rows(), signing_key=str(key.private), samples=20, max_new_tokens=8, seed=1, **fields
    )
    assert result.quality is not None
    assert 0 <= result.quality.mauve <= 1
    assert result.quality.samples.n_texts == 20
    assert (result.quality.reference is None) == private
    assert len(on_disk(folder)["private_steps"]) == 1 + private


def test_synthetic_data_carry_the_guarantee(folder: Path, tmp_path: Path) -> None:
    model = LLM(str(folder))
    path = tmp_path / "synthetic.parquet"
    prompts = {"cough": "Cough:", "fever": "Fever:"}
    frame = model.synthesize(5, output=path, prompts=prompts, max_new_tokens=4, seed=2)
    assert list(frame.columns) == ["text", "label", "prompt", "policy"]
    assert list(frame["label"]) == ["cough", "fever", "cough", "fever", "cough"]
    assert all(text.startswith("Cough:") for text in frame["text"][::2])
    metadata = read_metadata(path)
    assert metadata["policy"] == model.policy
    assert metadata["certificate"] == (folder / "certificate.json").read_text()
    assert pq.read_table(path)["text"].to_pylist() == list(frame["text"])
    with pytest.raises(OutputError, match="already exists"):
        model.synthesize(5, output=path)
    with pytest.raises(SpecError, match="n=0"):
        model.synthesize(0)
    with pytest.raises(SpecError, match="at least one prompt"):
        model.synthesize(1, prompts=[])


def test_downstream_task(folder: Path, key: KeyFiles) -> None:
    model = LLM(str(folder))
    fields: dict[str, Any] = {"text_field": "text", "label_field": "label"}
    public = model.downstream(rows(30), rows(), **fields)
    assert public.accuracy == 1
    assert public.macro_f1 == 1
    assert public.majority_accuracy == 0.5
    assert len(on_disk(folder)["private_steps"]) == 1
    private = model.downstream(
        rows(30),
        rows(),
        signing_key=str(key.private),
        privacy_unit="patient",
        target_epsilon=5,
        **fields,
    )
    assert private.macro_f1 is None
    assert private.accuracy_std > 0
    assert [step.purpose for step in verified(folder, key).steps] == ["fit", "downstream"]
    exact, noised = released_figures(folder).downstream
    assert (exact.basis, exact.accuracy) == ("public", Figure(value=1))
    assert (noised.basis, noised.epsilon) == ("differential privacy", 5)
    assert noised.accuracy.std == private.accuracy_std
    assert page(folder).count("Teaching a classifier") == 2
    with pytest.raises(DataError, match="at least 2"):
        model.downstream(rows(30).assign(label="x"), rows(), **fields)


def test_fitted_further_all_steps_are_composed(folder: Path, key: KeyFiles, tmp_path: Path) -> None:
    model = LLM(str(folder))
    before = model.log_probability("The patient", " has a cough.")
    output = tmp_path / "further"
    again = {**QUICK, "target_epsilon": 2}
    model.fit(rows(), output=output, signing_key=str(key.private), **again)
    assert model.log_probability("The patient", " has a cough.") != before
    guarantee = verified(output, key)
    assert [step.purpose for step in guarantee.steps] == ["fit", "fit"]
    assert 8 < guarantee.epsilon < 10
    assert model.privacy is not None
    assert model.privacy.epsilon == guarantee.epsilon
    assert on_disk(output)["base_model"] == on_disk(folder)["base_model"]
    assert page(output).count(">fit</th>") == 2
    prompt = "The patient", " has a cough."
    assert LLM(str(output)).log_probability(*prompt) == pytest.approx(
        model.log_probability(*prompt), abs=1e-4
    )
    assert len(on_disk(folder)["private_steps"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "full"}, "cannot go on with an adapter"),
        ({"r": 4, "method": "lora"}, "belong to a new adapter"),
        ({"target_modules": ["q_proj"], "method": "lora"}, "belong to a new adapter"),
        ({"privacy_unit": "label", "batch_size": 1}, "differs from 'patient'"),
    ],
)
def test_what_a_further_fit_cannot_be(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        LLM(str(folder)).fit(rows(), output=tmp_path / "more", **{**QUICK, **change})
    assert not (tmp_path / "more").exists()


def test_no_guarantee_is_never_regained(tiny_llama: Path, tmp_path: Path, key: KeyFiles) -> None:
    model = LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "target_epsilon": "unlimited"})
    saved = model.save(tmp_path / "bare")
    assert "<h1>No guarantee" in page(saved)
    with pytest.raises(CertificateError, match="unlimited"):
        model.certificate(signing_key=str(key.private))
    with pytest.raises(SpecError, match="no later fit can"):
        LLM(str(saved)).fit(rows(), output=tmp_path / "more", **QUICK)
    frame = model.synthesize(2, output=tmp_path / "x.parquet", max_new_tokens=2)
    assert set(frame["policy"]) == {"no guarantee"}
    assert read_metadata(tmp_path / "x.parquet")["certificate"] is None


def test_full_models_are_fitted_further_in_full(tiny_llama: Path, tmp_path: Path) -> None:
    full = {**QUICK, "method": "full"}
    saved = LLM(str(tiny_llama)).fit(rows(), **full).save(tmp_path / "full")
    again = LLM(str(saved)).fit(rows(), output=tmp_path / "more", **full)
    assert again.privacy is not None
    assert len(again.privacy.spent) == 2
    assert again.privacy.base_model == str(tiny_llama)
    with pytest.raises(SpecError, match='method="full"'):
        LLM(str(saved)).fit(rows(), output=tmp_path / "other", **QUICK)


def test_certificates_of_models_in_memory_and_of_bases(
    tiny_llama: Path, tmp_path: Path, key: KeyFiles
) -> None:
    with pytest.raises(CertificateError, match="nothing was fitted"):
        LLM(str(tiny_llama)).certificate()
    model = LLM(str(tiny_llama)).fit(rows(), **QUICK)
    with pytest.raises(CertificateError, match="write them first"):
        model.certificate(signing_key=str(key.private))
    saved = model.save(tmp_path / "out")
    assert not (saved / "certificate.json").exists()
    with pytest.raises(CertificateError, match="needs a signing key"):
        model.certificate()
    audit = CertifiedAudit(
        epsilon_lower_bound=0.1,
        confidence=0.95,
        threat_model="black box",
        canaries=100,
        method="one run",
    )
    statement = model.certificate(signing_key=str(key.private), audit=audit)
    assert statement.predicate.audit == audit
    assert verified(saved, key).epsilon == model.privacy.epsilon  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="already fitted"):
        model.fit(rows(), **QUICK)


def test_bad_keys_stop_a_fit_before_it_starts(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(SigningKeyError, match="cannot be read"):
        LLM(str(tiny_llama)).fit(rows(), output=output, signing_key="/no/such.pem", **QUICK)
    unlimited = {**QUICK, "target_epsilon": "unlimited"}
    with pytest.raises(CertificateError, match="unlimited"):
        LLM(str(tiny_llama)).fit(rows(), output=output, signing_key="/no/such.pem", **unlimited)
    assert not output.exists()
    with pytest.raises(AdapterError):
        LLM(str(tiny_llama)).save(output)


def test_keyword_arguments_are_the_fields_of_the_specs() -> None:
    assert set(EvaluateFields.__annotations__) == set(EvaluateSpec.model_fields)
    assert set(DownstreamFields.__annotations__) == set(DownstreamSpec.model_fields)
