"""Per-token statistics against a literal forward pass over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from support.tiny_models import build, random_batch, with_lora
from taciturn.engine.auditing import tokens
from taciturn.engine.auditing.tokens import token_statistics
from taciturn.engine.model.loss import CausalLmLoss


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "gemma2"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_against_the_whole_vocabulary(
    name: str, adapted: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    model = with_lora(build(name)) if adapted else build(name)
    batch = random_batch([5, 2, 9], [0, 0, 1], padding=3)
    found = token_statistics(CausalLmLoss(model), batch)
    expected = []
    for row, (ids, weights) in enumerate(
        zip(batch.input_ids_BT, batch.loss_weights_BT, strict=True)
    ):
        log_p = model(input_ids=ids[None]).logits[0].detach().double().log_softmax(-1)
        for place in weights.nonzero()[:, 0].tolist():
            before = log_p[place - 1]
            mean = (before.exp() * before).sum()
            second = (before.exp() * before.square()).sum()
            expected.append([row, before[ids[place]], mean, (second - mean**2).sqrt()])
    actual = torch.stack([found.row_N, found.log_p_N, found.mean_N, found.std_N], dim=1)
    torch.testing.assert_close(
        actual.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5
    )


def test_tokens_that_a_model_rules_out_do_no_harm() -> None:
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    log_p, mean, std = tokens._statistics(logits, torch.tensor([0, 0]))
    assert torch.isfinite(torch.stack([log_p, mean, std])).all()
    assert std[1] == 0
    two = logits[0, :2].log_softmax(-1)
    assert mean[0] == pytest.approx(float((two.exp() * two).sum()))
