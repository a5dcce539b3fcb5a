"""Tiny random models of every architecture that is promised, built offline from their configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

from taciturn.engine.privacy.types import UnitBatch

VOCABULARY = 61
PADDING = 3

_WIDTH: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_WIDTH, "num_key_value_heads": 2}
_MOE = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
# BLOOM and MPT ask for other names.
_NAMED_DIFFERENTLY = {"vocab_size": VOCABULARY, "pad_token_id": PADDING, "eos_token_id": 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED),
    "llama-tied": lambda: hf.LlamaConfig(
        **_GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=5),
    "mixtral": lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=8),
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(**_MOE, shared_expert_intermediate_size=20),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**_MOE, head_dim=8, norm_topk_prob=True),
    "gemma2": lambda: hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=5),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=5),
    "phi": lambda: hf.PhiConfig(**_WIDTH, partial_rotary_factor=0.5, qk_layernorm=True),
    "phi3": lambda: hf.Phi3Config(**_GROUPED),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=4, bos_token_id=1
    ),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_WIDTH),
    "opt": lambda: hf.OPTConfig(
        **{**_WIDTH, "ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": True}
    ),
    "opt-projected": lambda: hf.OPTConfig(
        **{**_WIDTH, "ffn_dim": 24, "word_embed_proj_dim": 12, "do_layer_norm_before": False}
    ),
    "bloom": lambda: hf.BloomConfig(**_NAMED_DIFFERENTLY, hidden_size=16, n_layer=2, n_head=4),
    "falcon": lambda: hf.FalconConfig(
        **_WIDTH, new_decoder_architecture=True, num_kv_heads=2, alibi=False, bias=True
    ),
    "falcon-multi-query": lambda: hf.FalconConfig(
        **_WIDTH, new_decoder_architecture=False, multi_query=True, parallel_attn=True, alibi=False
    ),
    "falcon-alibi": lambda: hf.FalconConfig(
        **_WIDTH, new_decoder_architecture=False, multi_query=False, parallel_attn=False, alibi=True
    ),
    "mpt": lambda: hf.MptConfig(
        **_NAMED_DIFFERENTLY, d_model=16, n_layers=2, n_heads=4, max_seq_len=64
    ),
    "olmo": lambda: hf.OlmoConfig(**_GROUPED, clip_qkv=8.0),
    "stablelm": lambda: hf.StableLmConfig(**_GROUPED, use_qkv_bias=True),
    "stablelm-normed": lambda: hf.StableLmConfig(
        **_GROUPED, qk_layernorm=True, use_parallel_residual=True
    ),
    "smollm3": lambda: hf.SmolLM3Config(**_GROUPED),
    "granite": lambda: hf.GraniteConfig(
        **_GROUPED,
        embedding_multiplier=2.0,
        logits_scaling=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
}


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model with weights far enough from zero for every gradient to be alive; eval mode.

    Args:
        changes: fields of its configuration that shall be otherwise.
    """
    config = CONFIGS[name]()
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Tests want gradients of one size: initialisers leave them at 0.02, or 0 and 1.
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval()


def with_lora(model: Any, seed: int = 0, **options: Any) -> nn.Module:
    """LoRA on all linear layers, both matrices random, so that both have gradients."""
    arguments: dict[str, Any] = {"target_modules": "all-linear", "init_lora_weights": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **arguments | options)
        adapted: nn.Module = get_peft_model(model, config)
    return adapted.eval()


def random_batch(
    lengths: list[int], units: list[int], seed: int = 0, padding: int = 0
) -> UnitBatch:
    """Random tokens of the given lengths, right-padded; `padding` more columns than needed."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.full((len(lengths), max(lengths) + padding), PADDING)
    weights_BT = torch.zeros(ids_BT.shape)
    for row, length in enumerate(lengths):
        ids_BT[row, :length] = torch.randint(VOCABULARY, (length,), generator=generator)
        weights_BT[row, 1:length] = 1 / max(1, length - 1)
    return UnitBatch(ids_BT, weights_BT, torch.tensor(units), max(units) + 1)


def units_of(batch: UnitBatch, units: list[int]) -> UnitBatch:
    """The part of a batch that holds these units, numbered from 0 in this order."""
    rows = [row for unit in units for row in (batch.unit_of_B == unit).nonzero().flatten().tolist()]
    unit_of_B = torch.tensor([units.index(int(batch.unit_of_B[row])) for row in rows])
    return UnitBatch(
        batch.input_ids_BT[rows], batch.loss_weights_BT[rows], unit_of_B, n_units=len(units)
    )
