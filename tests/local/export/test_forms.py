"""An export is the fitted model, whole or not there at all, with its guarantee in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers as hf
import yaml

from taciturn.certificate.derivation import verify_derived
from taciturn.certificate.keygen import KeyFiles
from taciturn.certificate.keys import read_trust
from taciturn.errors import (
    AdapterError,
    CertificateError,
    MissingDependencyError,
    ModelError,
    OutputError,
    SpecError,
)
from taciturn.llm import LLM

QUICK: dict[str, Any] = {
    "target_epsilon": 50,
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 0.05,
}
FORMS = [("merged", "f16"), ("gguf", "f32"), ("gguf", "q8_0"), ("ollama", "f16")]
# Said of each export: what differs, if anything does.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the output layer was fitted"),
    pytest.mark.filterwarnings("ignore:llama.cpp does not compose"),
]


def rows() -> list[str]:
    return [f"patient {i} has a cough" for i in range(8)]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(torch.arange(3, 23).unsqueeze(0)).logits
    return found


@pytest.mark.parametrize(("form", "weights"), FORMS)
def test_export_is_signed_for_and_carries_the_guarantee(
    form: Any, weights: Any, folder: Path, tmp_path: Path, key: KeyFiles
) -> None:
    output = tmp_path / "new" / "export"
    model = LLM(str(folder))
    model.export(output, form=form, weights=weights, signing_key=str(key.private))
    derived = verify_derived(output, read_trust(key.trust))
    origin = derived.statement.predicate
    assert (origin.form, origin.weights) == (form, "f32" if form == "merged" else weights)
    assert origin.comparison.deviation <= origin.comparison.bound
    assert derived.key is not None
    assert origin.certificate is not None
    digest, policy = origin.certificate.sha256, model.policy
    front = yaml.safe_load((output / "README.md").read_text().split("---\n")[1])
    assert front["taciturn"]["certificate_sha256"] == digest
    assert front["taciturn"]["policy"] == policy
    assert not (output / "private").exists()
    if form == "merged":
        about = json.loads((output / "config.json").read_text())["taciturn"]
        assert (about["certificate_sha256"], about["policy"]) == (digest, policy)
        assert LLM(str(output)).privacy == model.privacy
    else:
        fields = gguf.GGUFReader(output / f"model-{weights}.gguf").fields
        assert fields["taciturn.certificate_sha256"].contents() == digest
        assert fields["general.description"].contents() == policy
    if form == "ollama":
        text = (output / "Modelfile").read_text()
        assert text.count(digest) == 2  # as a comment, and in what Ollama keeps
        assert f"FROM ./model-{weights}.gguf" in text


@pytest.mark.parametrize("tied", [True, False])
def test_merged_folder_needs_no_peft(tied: bool, tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    config = hf.AutoConfig.from_pretrained(base, tie_word_embeddings=tied)
    torch.manual_seed(1)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    fitted = LLM(str(base)).fit(rows(), **QUICK)
    expected = logits(fitted._local_model("x")._fitted)
    if tied:
        with pytest.warns(UserWarning, match="weights of its own"):
            fitted.export(tmp_path / "one")
    else:
        fitted.export(tmp_path / "one")
    whole = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "one" / "README.md").read_text()
    assert ("weights of its own" in card) == tied
    assert "base_model:" not in card  # a path of this machine is no name for others


def test_layers_alone_leave_a_tied_output_layer_tied(tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    config = hf.AutoConfig.from_pretrained(base, tie_word_embeddings=True)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    fitted = LLM(str(base)).fit(rows(), **QUICK, target_modules=["q_proj", "v_proj"])
    fitted.export(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["tie_word_embeddings"]


def test_model_without_a_guarantee_says_so_and_is_not_signed(
    tiny_llama: Path, tmp_path: Path, key: KeyFiles
) -> None:
    fitted = LLM(str(tiny_llama)).fit(rows(), **QUICK | {"target_epsilon": "unlimited"})
    fitted.export(tmp_path / "one", form="gguf")
    fields = gguf.GGUFReader(tmp_path / "one" / "model-f16.gguf").fields
    assert fields["taciturn.guarantee"].contents() == "none"
    assert "no guarantee" in (tmp_path / "one" / "README.md").read_text()
    with pytest.raises(CertificateError, match="has no certificate"):
        verify_derived(tmp_path / "one", read_trust(key.trust))
    with pytest.raises(CertificateError, match="unlimited"):
        fitted.export(tmp_path / "two", signing_key=str(key.private))


def test_nothing_is_written_where_something_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: KeyFiles
) -> None:
    model, output = LLM(str(folder)), tmp_path / "export"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SpecError, match="form"):
        model.export(output, form="onnx")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="already exists"):
        model.export(folder)
    with pytest.raises(AdapterError, match="nothing to export"):
        LLM("taciturn/tiny-medical").export(output)
    config = model._local_model("x")._load().model.config  # type: ignore[union-attr]
    monkeypatch.setattr(config, "model_type", "opt")
    with pytest.raises(ModelError, match=r"no GGUF export of \w+ \(opt\) yet"):
        model.export(output, form="ollama")
    monkeypatch.undo()
    monkeypatch.setattr("taciturn.local.export.comparison.LIMITS", {"f32": 0.0, "q8_0": 1e-9})
    with pytest.raises(AdapterError, match="not released"):
        model.export(output, form="gguf", weights="q8_0")
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OutputError, match="No space left"):
        model.export(output, form="gguf")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(MissingDependencyError, match=r"taciturn\[gguf\]"):
        model.export(output, form="gguf")
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == before
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CertificateError, match="not the file that was certified"):
        model.export(output)
    assert not output.exists()


def test_signed_export_needs_a_certificate(tiny_llama: Path, tmp_path: Path, key: KeyFiles) -> None:
    fitted = LLM(str(tiny_llama)).fit(rows(), **QUICK)
    with pytest.raises(CertificateError, match="make one first"):
        fitted.export(tmp_path / "one", signing_key=str(key.private))
    fitted.save(tmp_path / "saved", signing_key=str(key.private))
    fitted.export(tmp_path / "one", signing_key=str(key.private))
    assert verify_derived(tmp_path / "one", read_trust(key.trust)).key is not None


def test_certified_anew_an_export_is_no_longer_derived(
    folder: Path, tmp_path: Path, key: KeyFiles
) -> None:
    LLM(str(folder)).export(tmp_path / "one")
    whole = LLM(str(tmp_path / "one"))
    with pytest.raises(CertificateError, match="itself an export"):
        whole.export(tmp_path / "two")
    whole.certificate(signing_key=str(key.private))
    assert not (tmp_path / "one" / "derivation.json").exists()
    whole.export(tmp_path / "two", form="gguf")


def test_vllm_writes_what_the_fitted_model_writes(folder: Path, tmp_path: Path) -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed: it was not asked")
    fitted = LLM(str(folder))
    fitted.export(tmp_path / "one")
    engine = vllm.LLM(
        model=str(tmp_path / "one"), dtype="float32", enforce_eager=True, max_model_len=64
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=6)
    text = engine.generate(["The patient"], greedy)[0].outputs[0].text
    own = fitted.sample(["The patient"], temperature=0, max_new_tokens=6)["text"][0]
    assert text.strip() == own.strip()
