"""The memory estimate counts live tensors, and is a straight line in the tokens."""

from __future__ import annotations

import pytest
import torch

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.training.memory import (
    LiveBytes,
    available_bytes,
    memory_estimate,
    random_batch,
)

CPU = torch.device("cpu")


def test_counts_what_lives_at_once() -> None:
    known = torch.zeros(1000)
    with LiveBytes([known]) as live:
        one = torch.ones(1000)
        one.add_(1)
        view = one.view(10, 100)
        known.add_(1)
        assert live.peak == 4000
        two = view.exp()
        del one, view
        torch.zeros(500)
        assert live.peak == 8000
        del two
        torch.zeros(1500)
        assert live.peak == 8000
        torch.zeros(2500)
    assert live.peak == 10_000


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_estimate_is_what_a_larger_microbatch_takes(method: str, private: bool) -> None:
    model = build("llama") if method == "full" else with_lora(build("llama"))
    loss = CausalLmLoss(model)
    few, some, many = (random_batch(VOCABULARY, n, 24, CPU) for n in (2, 4, 16))
    tokens = many.input_ids_BT.numel()
    guess = memory_estimate(loss, few, some, tokens, Form.AUTO, private=private)
    exact = memory_estimate(loss, some, many, tokens, Form.AUTO, private=private)
    assert guess.microbatch == pytest.approx(exact.microbatch, rel=0.15)
    held = [*loss.parameters(), *loss.buffers()]
    assert guess.weights == sum(each.element_size() * each.numel() for each in held)
    trained = sum(each.numel() for each in loss.parameters() if each.requires_grad)
    assert guess.state == 20 * trained
    assert guess.total == guess.weights + guess.state + guess.microbatch


def test_free_memory_of_this_machine() -> None:
    free = available_bytes(CPU)
    assert free is None or free > 1e6
