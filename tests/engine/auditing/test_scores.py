"""Scores follow the losses, canary by canary, and separate what a model has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from taciturn.data.tokens.planted import Planted, own_words
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.auditing.canaries import draw_canaries
from taciturn.engine.auditing.scores import auc, nats, shares
from taciturn.errors import ModelError
from taciturn.spec import DataSpec


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


@torch.no_grad()
def loss(model: Any, tokenizer: Any, text: str) -> float:
    """By hand: nats of the text's own tokens, after bos."""
    ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    scores = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    return -float(scores.gather(1, ids[0, 1:, None]).sum())


def test_losses_are_those_of_the_model_in_the_order_of_the_canaries(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    canaries = draw_canaries("secret", 30, tokenizer)
    prepare(["A cough."], DataSpec(), tokenizer, 64, tmp_path / "data", 0, canaries)
    planted = Planted.read(tmp_path / "data")
    found = nats(model, own_words(planted, tokenizer, tmp_path), 64)
    expected = [loss(model, tokenizer, text) for text in canaries.texts]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_score_is_the_share_that_the_fit_took_away() -> None:
    found = shares(np.array([4.0, 4.0, 4.0, 0.0]), np.array([1.0, 4.0, 5.0, 0.0]))
    assert found.tolist() == [0.75, 0.0, -0.25, 0.0]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_model_without_losses_cannot_be_audited(loss: float) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        shares(np.array([3.0, 3.0]), np.array([1.0, loss]))


def test_auc() -> None:
    included = np.array([True, True, False, False])
    assert auc(np.array([4.0, 3.0, 2.0, 1.0]), included) == 1
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), included) == 0
    assert auc(np.array([4.0, 1.0, 3.0, 2.0]), included) == 0.5
    assert auc(np.zeros(4), included) == 0.5
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) == 0.5
