"""The one model that every variant trains: a random Llama, as it is or with a PEFT adapter."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

Method = Literal["lora", "full"]

LORA_RANK = 8


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the Llama; the defaults are those of taciturn/tiny-medical.

    Its embedding is not tied to its head, because Opacus' ghost mode refuses tied weights.
    """

    vocabulary: int = 6144
    hidden: int = 256
    intermediate: int = 688
    layers: int = 4
    heads: int = 4
    context: int = 8192


def build(method: Method, shape: ModelShape, *, tied: bool = False, seed: int = 0) -> nn.Module:
    """A model with the weights of `seed`, in training mode; it has no dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = LlamaForCausalLM(_config(shape, tied))
        if method == "full":
            return model.train()
        adapter = LoraConfig(
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # PEFT reads a name that transformers is about to change.
            warnings.simplefilter("ignore", FutureWarning)
            adapted: nn.Module = get_peft_model(model, adapter)
    return adapted.train()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser gets."""
    return [value for value in model.parameters() if value.requires_grad]


def _config(shape: ModelShape, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=tied,
        attention_dropout=0.0,
        pad_token_id=0,
        use_cache=False,
    )
