"""What a base model writes and does by itself follows from its weights and the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from support import side_information
from taciturn.engine.model import lora, subspace
from taciturn.planning.plan import AdapterPlan


def test_what_tests_remember_is_what_would_be_worked_out(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a model that has been changed: another's is not taken for it."""
    model = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    # Little text, of a model that no other test has.
    monkeypatch.setattr(subspace, "_SEQUENCES", subspace._BATCH)
    monkeypatch.setattr(subspace, "_TOKENS", 8)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    side_information.remember()
    for seed in (0, 0, 1):
        text = lora.own_text(model, seed)
        assert torch.equal(text, subspace.own_text(model, seed))
        ranks = {"model.layers.0.self_attn.q_proj": 2}
        found = lora.activation_subspaces(model, ranks, text, seed)
        expected = subspace.activation_subspaces(model, ranks, text, seed)
        for name, directions in expected.items():
            assert torch.equal(found[name].directions_RD, directions.directions_RD)
    assert not torch.equal(lora.own_text(model, 0), lora.own_text(model, 1))
    before = lora.own_text(model, 0)
    with torch.no_grad():
        model.lm_head.weight.mul_(-3)
    assert not torch.equal(lora.own_text(model, 0), before)
    assert torch.equal(lora.own_text(model, 0), subspace.own_text(model, 0))


def test_rows_of_public_text_hold_its_tokens_in_their_order() -> None:
    records = [np.arange(start, start + 7, dtype=np.int32) for start in range(0, 70, 7)]
    assert subspace.text_rows(records).tolist() == [list(range(48))]
    assert subspace.text_rows(records[:2]).tolist() == [list(range(14))]
    many = subspace.text_rows(np.full(100, number, np.int32) for number in range(10**9))
    assert many.shape == (512, 48)
    assert subspace.text_rows([np.zeros(48 * 150, np.int32)]).shape == (128, 48)


@pytest.mark.parametrize("fewest", [1, 400])
def test_adapters_learn_from_public_text_instead_of_the_model_s_own(
    fewest: int, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from text of one token, which has one direction."""
    choice = AdapterPlan(method="lora", r=4, alpha=4.0, head_r=3, fixed_a=True)

    def attached(text: torch.Tensor | None) -> dict[str, torch.Tensor]:
        model = lora.attach(LlamaForCausalLM.from_pretrained(tiny_llama).eval(), choice, text)
        return {name: value for name, value in model.named_parameters() if "lora_" in name}

    own = attached(None)
    monkeypatch.setattr(lora, "own_text", None)  # not called
    tokens = torch.arange(48).repeat(2, 1) % fewest + 100
    found = attached(tokens)
    matrices = [name for name in own if "lora_A" in name]
    for name in matrices:
        norms_R = found[name].norm(dim=1)
        assert torch.isfinite(norms_R).all()
        assert norms_R.max() <= 40 * norms_R.min()
    assert len(matrices) > 8
    assert not any(torch.equal(own[name], found[name]) for name in matrices)
