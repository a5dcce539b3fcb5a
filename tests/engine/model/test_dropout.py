"""Train mode computes what eval mode computes, twice, once the rates are zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from support.tiny_models import CONFIGS, build, random_batch, with_lora
from taciturn.engine.model.dropout import disable_dropout

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = random_batch([8, 5, 11], [0, 1, 1]).input_ids_BT


def with_every_rate_on(name: str) -> Any:
    """A model whose configuration asks for all the randomness that it knows."""
    config = CONFIGS[name]()
    if name == "mpt":
        config.attn_config.attn_pdrop = 1  # its type is int
    for field, value in list(vars(config).items()):
        if ("drop" in field or "jitter" in field) and isinstance(value, float):
            setattr(config, field, 0.3)
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_train_mode_is_eval_mode(name: str) -> None:
    model = with_every_rate_on(name)
    model.train()
    was_random = not torch.equal(logits(model), logits(model.eval()))
    model.train()
    disable_dropout(model)
    first, second = logits(model), logits(model)
    assert torch.equal(first, second)
    assert torch.equal(first, logits(model.eval()))
    assert was_random, "the test shows nothing for a model that was not random before"


def test_adapters_too() -> None:
    model = with_lora(build("llama"), lora_dropout=0.5).train()
    assert not torch.equal(logits(model), logits(model))
    disable_dropout(model)
    assert torch.equal(logits(model), logits(model))


def test_other_attributes_are_left_alone() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_last = True
            self.dropout_name = "none"
            self.layerdrop = 0.1
            self.scale = 0.5

    layer = Layer()
    disable_dropout(nn.Sequential(layer, nn.Dropout2d(0.2)))
    assert (layer.drop_last, layer.dropout_name) == (True, "none")
    assert (layer.layerdrop, layer.scale) == (0.0, 0.5)
