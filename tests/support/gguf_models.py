"""Tiny random models of the architectures that GGUF files are written of, with tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from support import tiny_tokenizers

_WIDTH: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1 + 0.1 * n for n in range(8)],
    "long_factor": [1.5 + 0.2 * n for n in range(8)],
    "original_max_position_embeddings": 256,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "llama": (hf.LlamaConfig, {}, "llama-spm"),
    "llama-3": (
        hf.LlamaConfig,
        {"rope_parameters": _LLAMA3, "tie_word_embeddings": True},
        "llama-bpe",
    ),
    "llama-linear": (
        hf.LlamaConfig,
        {"rope_parameters": _LINEAR, "attention_bias": True, "mlp_bias": True},
        "gpt-2",
    ),
    "llama-unigram": (hf.LlamaConfig, {}, "unigram"),
    "smollm": (hf.LlamaConfig, {"tie_word_embeddings": True}, "smollm"),
    "mistral": (hf.MistralConfig, {"sliding_window": 64, "head_dim": 32}, "llama-spm"),
    "qwen2": (hf.Qwen2Config, {"tie_word_embeddings": True}, "qwen2"),
    "qwen2-yarn": (hf.Qwen2Config, {"rope_parameters": _YARN}, "qwen2"),
    "qwen3": (hf.Qwen3Config, {"head_dim": 32}, "qwen2"),
    "gemma": (hf.GemmaConfig, {"head_dim": 32}, "gemma-spm"),
    "gemma2": (hf.Gemma2Config, _GEMMA, "gemma-spm"),
    "gemma3": (hf.Gemma3TextConfig, {**_GEMMA, "num_hidden_layers": 7}, "gemma-spm"),
    "phi3": (hf.Phi3Config, {}, "phi3-spm"),
    "phi3-long": (
        hf.Phi3Config,
        {"rope_parameters": _LONG, "original_max_position_embeddings": 256},
        "phi3-spm",
    ),
    "gpt2": (hf.GPT2Config, {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256}, "gpt-2"),
}


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Write model and tokenizer as transformers does; some embeddings have no token."""
    kind, fields, tokenizer_kind = MODELS[name]
    tokenizer = tiny_tokenizers.make(tokenizer_kind)
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    width = {} if name == "gpt2" else _WIDTH
    config = kind(**{**width, **fields, "vocab_size": len(tokenizer) + 3, **roles, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_ROLES = ("bos", "eos", "pad")
