"""Mixture-of-experts layers: the exact implementation computes what eager computes, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from support.tiny_models import CONFIGS, build, random_batch
from taciturn.engine.model.experts import IMPLEMENTATION, use_exact_experts
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.errors import UnsupportedLayerError

MIXTURES = [name for name in CONFIGS if "mixtral" in name or "moe" in name]
BATCH = random_batch([8, 5, 11], [0, 1, 1])


def outputs(model: Any) -> list[torch.Tensor]:
    """Logits and every gradient of an ordinary backward pass."""
    model.zero_grad()
    logits = model(input_ids=BATCH.input_ids_BT, use_cache=False).logits
    logits.sin().sum().backward()
    return [logits.detach(), *(each.grad.clone() for each in model.parameters())]


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_plain_parameters_give_the_eager_result(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    model.set_experts_implementation("eager")
    eager = outputs(model)
    use_exact_experts(model)
    assert model.config._experts_implementation == IMPLEMENTATION
    for exact, expected in zip(outputs(model), eager, strict=True):
        assert torch.equal(exact, expected)


def test_row_that_goes_nowhere_is_left_out() -> None:
    """Expert parallelism marks such rows with an index one beyond the last expert."""
    model = build("mixtral")
    use_exact_experts(model)
    experts = model.model.layers[0].mlp.experts
    x_ND = torch.randn(3, 16)
    index_NK = torch.tensor([[0, 1], [4, 2], [4, 4]])
    weights_NK = torch.full((3, 2), 0.5)
    out = experts(x_ND, index_NK, weights_NK)
    assert not out[2].any()
    torch.testing.assert_close(out[1], experts(x_ND[1:2], index_NK[1:2, 1:], weights_NK[:1, :1])[0])


def test_models_without_experts_are_left_alone() -> None:
    model = build("llama")
    before = model.config._experts_implementation
    use_exact_experts(model)
    assert model.config._experts_implementation == before


def test_experts_of_another_make_are_refused_when_trained() -> None:
    """Transposed weights and biases: never approximated, and frozen they are no obstacle."""
    config = hf.GptOssConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=3,
    )
    model = hf.GptOssForCausalLM(config).eval()
    use_exact_experts(model)
    assert model.config._experts_implementation != IMPLEMENTATION
    with pytest.raises(UnsupportedLayerError, match=r"experts|sinks"):
        per_example_gradients(CausalLmLoss(model), BATCH)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert per_example_gradients(CausalLmLoss(model), BATCH).values


@pytest.mark.parametrize("name", MIXTURES)
def test_capacity_does_not_depend_on_the_batch(name: str) -> None:
    """However many other rows want the same expert, a row's output stays what it is."""
    model = build(name).double()
    use_exact_experts(model)
    batch = random_batch([8] * 6, [0] * 6)
    crowd = batch.input_ids_BT[:1].repeat(12, 1)
    alone = model(input_ids=crowd[:1], use_cache=False).logits
    together = model(input_ids=torch.cat([crowd, batch.input_ids_BT]), use_cache=False).logits
    torch.testing.assert_close(together[:1], alone)
