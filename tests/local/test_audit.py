"""The audit through the facade: canaries of a fit, what they prove, and where it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from taciturn.certificate.keygen import KeyFiles
from taciturn.certificate.keys import read_trust
from taciturn.certificate.verify import Folders, verify_file
from taciturn.data.tokens.planted import Planted
from taciturn.engine.privacy import noise
from taciturn.engine.training.loop import TrainingProgress
from taciturn.errors import (
    CertificateError,
    CheckpointError,
    DataError,
    DataNotFoundError,
    SpecError,
    TaciturnError,
)
from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.reports.privacy import Audit
from taciturn.reports.verdict import BROKEN

N = 60
QUICK: dict[str, Any] = {
    "text_field": "text",
    "privacy_unit": "patient",
    "target_epsilon": 8,
    "batch_size": 20,
    "steps": 3,
    "canaries": N,
}
NO_PRIVACY: dict[str, Any] = {
    **QUICK,
    "target_epsilon": "unlimited",
    "method": "full",
    "steps": 30,
    "learning_rate": 0.05,
}


def rows(n: int = 20) -> pd.DataFrame:
    texts = [f"Patient number {i} has a cough." for i in range(n)]
    return pd.DataFrame({"patient": [f"p{i}" for i in range(n)], "text": texts})


@pytest.fixture(scope="module")
def broken(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an engine that promises epsilon 0.3 and adds next to no noise."""
    output = tmp_path_factory.mktemp("broken") / "out"
    honest = noise.add_noise
    settings = {**QUICK, "target_epsilon": 0.3, "batch_size": 20 + N, "learning_rate": 0.02}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "add_noise", lambda total, _, *rest: honest(total, 1e-6, *rest))
        LLM(str(tiny_llama)).fit(rows(), output=output, **settings)
    return output


def verified(folder: Path, key: KeyFiles) -> Any:
    found = verify_file(folder / "certificate.json", read_trust(key.trust), Folders(model=folder))
    return found.statement.predicate


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_canaries_are_units_whatever_their_coins(original: Path) -> None:
    report = LLM(str(original)).privacy
    assert report is not None
    assert report.n_units == 20 + N
    assert report.sampling_probability == 20 / (20 + N)
    assert report.canaries is not None
    assert (report.canaries.number, report.canaries.kind) == (N, "new-token")
    card = (original / "README.md").read_text()
    assert f"{20 + N}, {N} of them canaries of an audit" in card


def test_plan_counts_them(tiny_llama: Path) -> None:
    plan = LLM(str(tiny_llama)).plan(n_units=20, **QUICK)
    assert plan.n_units == 20 + N


def test_nothing_of_them_leaves_the_private_folder(folder: Path, key: KeyFiles) -> None:
    LLM(str(folder)).audit(signing_key=str(key.private))
    planted = Planted.read(folder / "private" / "data")
    content = json.loads((folder / "private" / "data" / "canaries.json").read_text())
    secrets = [content["nonce"], content["included"], *planted.units.texts]
    for name, released in files(folder).items():
        if name.startswith("tokenizer"):
            continue  # words of the vocabulary stand there anyway
        assert not any(secret.encode() in released for secret in secrets), name


def test_a_private_fit_is_within_its_promise(folder: Path, key: KeyFiles) -> None:
    model = LLM(str(folder))
    found = model.audit(signing_key=str(key.private))
    assert model.privacy is not None
    assert found.promised_epsilon == model.privacy.epsilon
    assert found.delta == model.privacy.delta
    assert not found.refuted
    assert found.epsilon_lower_bound <= found.promised_epsilon  # type: ignore[operator]
    assert [each.guesses for each in found.rounds] == [60, 30, 15, 7]
    assert found.epsilon_lower_bound == max(each.epsilon_lower_bound for each in found.rounds)
    counts = found.histogram
    assert sum(counts.included) + sum(counts.excluded) == N
    assert len(counts.edges) == len(counts.included) + 1
    small, larger = found.attacker_limits
    assert 0 < small.true_positive_rate < larger.true_positive_rate < 1
    assert 0 < found.largest_advantage < 1  # type: ignore[operator]


def test_the_result_is_released_and_certified(folder: Path, key: KeyFiles, tmp_path: Path) -> None:
    model = LLM(str(folder))
    found = model.audit(signing_key=str(key.private), confidence=0.9)
    assert Audit.model_validate_json((folder / "audit.json").read_text()) == found
    assert found.verdict in (folder / "README.md").read_text()
    assert f"{found.correct} of {found.guesses} guesses" in (folder / "report.html").read_text()
    certified = verified(folder, key).audit
    assert certified.epsilon_lower_bound == found.epsilon_lower_bound
    assert (certified.confidence, certified.canaries) == (0.9, N)
    assert certified.threat_model == "black box"
    saved = LLM(str(folder)).save(tmp_path / "saved", signing_key=str(key.private))
    assert (saved / "audit.json").read_bytes() == (folder / "audit.json").read_bytes()
    assert verified(saved, key).audit == certified
    again = LLM(str(folder)).audit(signing_key=str(key.private), confidence=0.9)
    assert again == found


def test_what_is_paid_later_keeps_the_audit(folder: Path, key: KeyFiles) -> None:
    model = LLM(str(folder))
    found = model.audit(signing_key=str(key.private))
    fields = {"text_field": "text", "privacy_unit": "patient", "target_epsilon": 1}
    model.evaluate(rows(), signing_key=str(key.private), **fields)
    model.evaluate(["A public note."])
    assert found.verdict in (folder / "README.md").read_text()
    assert "What an audit found" in (folder / "report.html").read_text()
    assert verified(folder, key).audit.canaries == N


def test_an_edited_result_is_not_certified(folder: Path, key: KeyFiles) -> None:
    LLM(str(folder)).audit(signing_key=str(key.private))
    path = folder / "audit.json"
    path.write_text(path.read_text().replace('"confidence": 0.95', '"confidence": 0.99'))
    with pytest.raises(CertificateError, match=r"audit\.json is not the file that was certified"):
        verified(folder, key)


def test_without_a_key_a_certified_folder_is_left_alone(folder: Path) -> None:
    before = files(folder)
    with pytest.raises(CertificateError, match="an audit changes what the certificate"):
        LLM(str(folder)).audit()
    assert files(folder) == before


def test_a_model_in_memory_is_audited_before_it_is_saved(tiny_llama: Path, tmp_path: Path) -> None:
    model = LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "steps": 1, "canary_kind": "random"})
    found = model.audit()
    assert found.canary_kind == "random"
    saved = model.save(tmp_path / "out")
    assert Audit.model_validate_json((saved / "audit.json").read_text()) == found
    with pytest.raises(DataNotFoundError, match="audit where the model was fitted"):
        LLM(str(saved)).audit()


@pytest.mark.parametrize(
    ("frame", "fields"),
    [
        (
            pd.DataFrame({"q": ["Any fever?", "A cough?"], "a": ["None.", "Yes."]}),
            {"text_field": None, "question_field": "q", "answer_field": "a", "privacy_unit": None},
        ),
        (rows(), {"canary_kind": "secret"}),
    ],
    ids=["answers", "secrets"],
)
def test_without_privacy_it_finds_what_was_memorised(
    frame: pd.DataFrame, fields: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    settings = {**NO_PRIVACY, **fields}
    model = LLM(str(tiny_llama)).fit(frame, output=tmp_path / "out", **settings)
    found = model.audit()
    assert found.auc > 0.9
    assert found.epsilon_lower_bound > 1
    assert (found.promised_epsilon, found.largest_advantage) == (None, None)
    assert not found.refuted
    assert "Promised: nothing" in found.verdict
    assert (tmp_path / "out" / "audit.json").exists()


def test_a_broken_engine_is_found_out(broken: Path, tmp_path: Path, key: KeyFiles) -> None:
    folder = Path(shutil.copytree(broken, tmp_path / "out"))
    before = LLM(str(folder))
    assert before.certificate(signing_key=str(key.private)).predicate.audit is None
    found = before.audit(signing_key=str(key.private))
    assert found.auc > 0.95
    assert found.epsilon_lower_bound > 1 > found.promised_epsilon  # type: ignore[operator]
    assert found.refuted
    assert BROKEN in found.verdict
    assert BROKEN in (folder / "README.md").read_text()
    with pytest.raises(CertificateError, match=r"does not cover"):
        verified(folder, key)
    with pytest.raises(CertificateError, match="the guarantee is broken"):
        LLM(str(folder)).certificate(signing_key=str(key.private))
    with pytest.raises(CertificateError, match="the guarantee is broken"):
        LLM(str(folder)).save(tmp_path / "saved", signing_key=str(key.private))
    assert not list((tmp_path / "saved").glob("*"))


def test_models_without_canaries(tiny_llama: Path, folder: Path, key: KeyFiles) -> None:
    with pytest.raises(SpecError, match="a base model has no canaries"):
        LLM(str(tiny_llama)).audit()
    plain = LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "steps": 1, "canaries": 0})
    with pytest.raises(SpecError, match="fitted without canaries"):
        plain.audit()
    further = LLM(str(folder)).fit(rows(), **{**QUICK, "steps": 1, "canaries": 0})
    with pytest.raises(SpecError, match="fitted without canaries"):
        further.audit()


def damaged(folder: Path, change: str) -> None:
    path = folder / "private" / "data" / "canaries.json"
    text = path.read_text()
    if change == "gone":
        shutil.rmtree(folder / "private")
    elif change == "cut":
        path.write_text(text[:-30])
    else:
        bits = json.loads(text)["included"]
        turned = ("1" if bits[0] == "0" else "0") + bits[1:]
        path.write_text(text.replace(bits, turned))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ("gone", DataNotFoundError, "audit where the model was fitted"),
        ("cut", DataError, "truncated or was edited"),
        ("turned", DataError, "its SHA-256 is not that"),
    ],
)
def test_canaries_that_are_not_those_of_the_fit(
    change: str, error: type[TaciturnError], match: str, folder: Path, key: KeyFiles
) -> None:
    damaged(folder, change)
    before = files(folder)
    with pytest.raises(error, match=match):
        LLM(str(folder)).audit(signing_key=str(key.private))
    assert files(folder) == before


def test_too_few_canaries(tiny_llama: Path, tmp_path: Path, folder: Path, key: KeyFiles) -> None:
    with pytest.raises(SpecError, match="at least 6"):
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "few", **{**QUICK, "canaries": 5})
    assert not (tmp_path / "few").exists()
    with pytest.raises(SpecError, match="canary_kind='random' without canaries"):
        LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "canaries": 0, "canary_kind": "random"})
    with pytest.raises(SpecError, match=r"confidence=.*less than 1"):
        LLM(str(folder)).audit(confidence=1.0)
    few = LLM(str(tiny_llama)).fit(rows(), **{**QUICK, "steps": 1, "canaries": 7})
    with pytest.raises(SpecError, match=r"7 canaries can give no bound at .* 0\.99, .*: 10 could"):
        few.audit(confidence=0.99)
    with pytest.raises(SpecError, match=r"delta=0\.001 is too large for a bound"):
        few.audit(confidence=0.9999)


def test_a_resumed_run_keeps_its_canaries(tiny_llama: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise StopError

    output = tmp_path / "out"
    settings = {**QUICK, "checkpoint_every": 1}
    with pytest.raises(StopError):
        LLM(str(tiny_llama)).fit(
            rows(), output=output, observer=Observer(on_progress=stop), **settings
        )
    before = (output / "private" / "data" / "canaries.json").read_bytes()
    for other in ({"canaries": 0}, {"canary_kind": "random"}):
        with pytest.raises(CheckpointError, match=f"was begun with canaries={N}"):
            LLM(str(tiny_llama)).fit(rows(), output=output, resume=True, **{**settings, **other})
    model = LLM(str(tiny_llama)).fit(rows(), output=output, resume=True, **settings)
    assert (output / "private" / "data" / "canaries.json").read_bytes() == before
    assert model.audit().canaries == N
