"""A GGUF file is a base model like any other: same text, same fit, clear errors."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.engine.model.load import load_base
from taciturn.errors import MissingDependencyError
from taciturn.llm import LLM
from taciturn.spec import PerformanceSpec

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(heads: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The embedded model's weights under GGUF's names, queries and keys in llama.cpp's order."""
    for name, value in load_file(model_path() / "model.safetensors").items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        weight = value.float().numpy()
        if parts[0] == "layers":
            if parts[2] in ("self_attn.q_proj", "self_attn.k_proj"):
                halves = weight.reshape(heads, 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            yield f"blk.{parts[1]}.{_LAYER[parts[2]]}.weight", weight
        else:
            renamed = {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[0]]
            yield f"{renamed}.weight", weight


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, written with llama.cpp's own library."""
    path = tmp_path_factory.mktemp("gguf") / "tiny-medical-f32.gguf"
    config: dict[str, Any] = json.loads((model_path() / "config.json").read_text())
    tokenizer = json.loads((model_path() / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(ordered)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[number in special] for number in range(len(ordered))])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    for name, weight in tensors(config["num_attention_heads"]):
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def test_is_the_model_it_was_made_of(file: Path) -> None:
    spec = PerformanceSpec(dtype="float32")
    loaded, embedded = load_base(str(file), spec), load_base(TINY_MEDICAL, spec)
    text = "The patient was admitted with fever, and François Dupont was seen."
    ids = embedded.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    inputs = torch.tensor([ids])
    torch.testing.assert_close(
        loaded.model(inputs).logits, embedded.model(inputs).logits, rtol=1e-4, atol=1e-4
    )


def test_is_fitted_saved_and_loaded(file: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": [f"Note {n}: the patient has a cough." for n in range(30)]})
    model = LLM(str(file))
    model.fit(rows, text_field="text", target_epsilon=8, method="lora", r=2, steps=2)
    model.save(tmp_path / "out")
    assert len(LLM(str(tmp_path / "out")).sample(["The patient"], max_new_tokens=4)) == 1


def test_without_the_reader_says_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name)
    )
    with pytest.raises(MissingDependencyError, match=r"taciturn\[gguf\]"):
        load_base(str(file), PerformanceSpec())
