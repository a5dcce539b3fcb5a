"""Rotary embeddings that look at the longest record of a batch are kept below that length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from support.tiny_models import CONFIGS, build, random_batch
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.rope import independent_length
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.training.trainable import trainable
from taciturn.errors import GuaranteeError
from taciturn.planning.plan import AdapterPlan
from taciturn.spec import FitSpec

SIZE = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 3,
}


def dynamic() -> Any:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    config = hf.LlamaConfig(**SIZE, max_position_embeddings=8, rope_parameters=rope)
    return hf.LlamaForCausalLM(config).eval()


def longrope(original: int = 8) -> Any:
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 4.0, 16.0, 64.0],
        "rope_theta": 100.0,
        "original_max_position_embeddings": original,
    }
    config = hf.Phi3Config(
        **SIZE,
        max_position_embeddings=32,
        original_max_position_embeddings=original,
        rope_parameters=rope,
        bos_token_id=1,
        eos_token_id=2,
    )
    return hf.Phi3ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_beyond_the_bound_records_would_mix(make: Any) -> None:
    """The danger is real: one long record changes what the model computes on a short one."""
    torch.manual_seed(0)
    model = make()
    assert independent_length(model) == 8
    short = random_batch([6], [0]).input_ids_BT
    with torch.no_grad():
        alone = model(input_ids=short, use_cache=False).logits
        within = torch.nn.functional.pad(short, (0, 2))
        beyond = torch.nn.functional.pad(short, (0, 6))
        fits = model(input_ids=within, use_cache=False).logits[:, :6]
        mixes = model(input_ids=beyond, use_cache=False).logits[:, :6]
    torch.testing.assert_close(fits, alone)
    assert not torch.allclose(mixes, alone, rtol=1e-3)


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_loss_refuses_longer_batches(make: Any) -> None:
    loss = CausalLmLoss(make())
    assert loss.max_tokens == 8
    assert loss(random_batch([8, 5], [0, 1])).shape == (2,)
    with pytest.raises(GuaranteeError, match=r"9 tokens is longer than 8.*max_tokens=8"):
        loss(random_batch([9], [0]))


@pytest.mark.parametrize("name", CONFIGS)
def test_others_have_no_bound(name: str) -> None:
    assert independent_length(build(name)) is None


@pytest.mark.parametrize("epsilon", [3, "unlimited"])
def test_length_is_refused_before_a_record_has_it(epsilon: Any) -> None:
    """Whether the job fails must not depend on how long a record is."""
    base = LoadedModel("base", longrope(16), None, context_length=32)
    spec = FitSpec(target_epsilon=epsilon, method="full", max_tokens=24)
    plan = AdapterPlan(method="full")
    with pytest.raises(GuaranteeError, match=r"24 tokens is longer than 16.*max_tokens=16"):
        trainable(base, spec, plan, ALONE)
    trainable(base, spec.model_copy(update={"max_tokens": 16}), plan, ALONE)
