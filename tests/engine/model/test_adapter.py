"""An adapter and its base merged into one model that writes the same, whatever the base ties."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

from taciturn.errors import AdapterError, ModelError
from taciturn.llm import LLM

TEXTS = [f"patient {i} has a cough" for i in range(8)]
QUICK: dict[str, Any] = {
    "target_epsilon": 50,
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 0.05,
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(3, 23).unsqueeze(0)).logits
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: Any) -> Path:
    folder = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("base") / "base"))
    config = hf.AutoConfig.from_pretrained(folder, tie_word_embeddings=request.param)
    torch.manual_seed(1)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["auto", "lora"])
def test_merged_it_gives_the_same_logits(base: Path, tmp_path: Path, method: Any) -> None:
    adapter, whole = tmp_path / "adapter", tmp_path / "whole"
    fitted = LLM(str(base)).fit(TEXTS, **QUICK, method=method, output=adapter)
    expected = logits(
        peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(base), str(adapter))
    )
    fitted.save(whole, merged=True)
    assert not (whole / "adapter_config.json").exists()
    found = logits(hf.AutoModelForCausalLM.from_pretrained(whole))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    again = LLM(str(whole))
    assert again.privacy == fitted.privacy
    prompt = ["The patient"]
    for model in (again, fitted):  # which is as it was
        text = model.sample(prompt, temperature=0, max_new_tokens=6)["text"][0]
        assert text == LLM(str(adapter)).sample(prompt, temperature=0, max_new_tokens=6)["text"][0]


def test_peft_itself_warns_of_a_merge_that_would_be_wrong(base: Path, tmp_path: Path) -> None:
    """And its merge is as wrong as the card says; if this fails, PEFT has learned it."""
    LLM(str(base)).fit(TEXTS, **QUICK, output=tmp_path / "out")
    model = hf.AutoModelForCausalLM.from_pretrained(base)
    adapted: Any = peft.PeftModel.from_pretrained(model, str(tmp_path / "out"))
    expected = logits(adapted)
    if hf.AutoConfig.from_pretrained(base).tie_word_embeddings:
        with pytest.warns(UserWarning, match="tie_word_embeddings"):
            one = adapted.merge_and_unload()
        assert not torch.allclose(expected, logits(one), rtol=1e-2, atol=1e-3)
    else:
        torch.testing.assert_close(expected, logits(adapted.merge_and_unload()))


def test_what_cannot_be_merged_exactly_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = LLM(str(tiny_llama)).fit(TEXTS, **QUICK)
    monkeypatch.setattr(hf.LlamaForCausalLM, "is_quantized", True, raising=False)
    with pytest.raises(ModelError, match="quantised base cannot be merged"):
        fitted.save(tmp_path / "one", merged=True)
    monkeypatch.undo()
    monkeypatch.setattr(
        "taciturn.engine.model.adapter.probe_logits", lambda model: torch.randn(1, 12, 61)
    )
    with pytest.raises(AdapterError, match="merged model does not give the fitted model's logits"):
        fitted.save(tmp_path / "one", merged=True)
    assert not (tmp_path / "one").exists() or not list((tmp_path / "one").iterdir())
