"""Models taken apart before their output layer: only where that gives their own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from support.tiny_models import CONFIGS, build, random_batch, with_lora
from taciturn.engine.model.dropout import disable_dropout
from taciturn.engine.model.lora import attach
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy
from taciturn.engine.model.output import gives_own_logits, output_terms
from taciturn.planning.plan import AdapterPlan

pytestmark = pytest.mark.filterwarnings("ignore")
BATCH = random_batch([7, 4, 11], [0, 1, 1])
# These cap or scale their logits, or give their output layer a bias.
OTHERWISE = {"gemma2", "granite", "phi"}


def prepared(name: str) -> Any:
    model = build(name)
    disable_dropout(model)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_loss_is_that_of_the_models_own_logits(name: str, method: str) -> None:
    model = prepared(name) if method == "full" else with_lora(prepared(name))
    own = weighted_cross_entropy(
        model(input_ids=BATCH.input_ids_BT).logits, BATCH.input_ids_BT, BATCH.loss_weights_BT
    )
    torch.testing.assert_close(CausalLmLoss(model)(BATCH), own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_most_architectures_are_taken_apart(name: str) -> None:
    assert gives_own_logits(prepared(name)) == (name not in OTHERWISE)


def test_low_rank_adapter_on_the_output_layer() -> None:
    """What method="auto" trains under privacy: with row scales, and B zero at first."""
    plan = AdapterPlan(method="lora", r=4, alpha=4, head_r=2, fixed_a=True)
    model: Any = attach(prepared("llama"), plan)
    before = [value.clone() for value in model.parameters()]
    assert gives_own_logits(model)
    assert all(map(torch.equal, before, model.parameters()))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.copy_(torch.randn_like(value) * 0.1)
                assert "lora_B" in name
    terms = output_terms(model, BATCH.input_ids_BT)
    assert terms is not None
    assert len(terms) == 2
    own = model(input_ids=BATCH.input_ids_BT).logits
    ours: Any = sum(x @ weight.T for x, weight in terms)
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


def test_layer_that_computes_something_else_is_left_whole() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = prepared("llama")
    head = model.get_output_embeddings()
    doubled = Doubled(head.in_features, head.out_features, bias=False)
    model.set_output_embeddings(doubled)
    assert not gives_own_logits(model)
    hooked = prepared("llama")
    hooked.get_output_embeddings().register_forward_hook(lambda module, inputs, out: out + 1)
    assert not gives_own_logits(hooked)


def test_what_is_done_to_the_logits_is_noticed() -> None:
    """The layer looks plain; what follows it is not."""
    model = prepared("llama")
    forward = model.forward

    def capped(*arguments: Any, **settings: Any) -> Any:
        out = forward(*arguments, **settings)
        out.logits = out.logits.tanh()
        return out

    model.forward = capped
    assert not gives_own_logits(model)
