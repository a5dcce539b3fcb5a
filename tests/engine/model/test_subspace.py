"""What a base model writes and does by itself follows from its weights and the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import sideinformation
from taciturn.engine.model import lora, subspace


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
    sideinformation.remember()
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
