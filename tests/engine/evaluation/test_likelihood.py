"""Scores per unit are those of brute force, in the order of the data."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.evaluation.likelihood import (
    Likelihood,
    likelihood,
    log_probabilities,
    unit_scores,
)
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.errors import SpecError
from taciturn.spec import DataSpec, PerformanceSpec

TEXTS = [
    "A cough.",
    "No.",
    "The patient has a long and unusual cough since last May.",
    "Fever, too.",
]


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> LoadedModel:
    return load_base(str(tiny_llama), PerformanceSpec())


def test_units_against_brute_force(base: LoadedModel, tmp_path: Path) -> None:
    frame = pd.DataFrame({"unit": ["a", "a", "b", "c"], "text": TEXTS})
    spec = DataSpec(text_field="text", privacy_unit="unit")
    dataset = prepare(frame, spec, base.tokenizer, 100, tmp_path / "data", 0)
    scores = unit_scores(base.model, dataset, 100)
    for unit in range(dataset.n_units):
        nats, tokens, correct = 0.0, 0, 0
        for record in dataset.records(unit):
            ids = torch.tensor(record.input_ids.astype("int64"))
            logits = base.model(ids[None]).logits[0].double()
            for place in range(1, len(ids)):
                if record.targets[place]:
                    row = logits[place - 1].log_softmax(0)
                    nats -= float(row[ids[place]])
                    correct += int(row.argmax() == ids[place])
                    tokens += 1
        assert float(scores.nats_U[unit]) == pytest.approx(nats, rel=1e-4)
        assert int(scores.tokens_U[unit]) == tokens
        assert int(scores.correct_U[unit]) == correct


def test_microbatches_do_not_matter(base: LoadedModel, tmp_path: Path) -> None:
    dataset = prepare(TEXTS, DataSpec(), base.tokenizer, 100, tmp_path / "data", 0)
    whole, split = (unit_scores(base.model, dataset, 100, size) for size in (4096, 16))
    torch.testing.assert_close(whole.nats_U, split.nats_U, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole.tokens_U, split.tokens_U)
    assert likelihood(base.model, dataset, 100).tokens == int(whole.tokens_U.sum())


@pytest.mark.parametrize("prompt", ["The patient has", ""])
def test_continuations_together_or_one_by_one(base: LoadedModel, prompt: str) -> None:
    texts = [" a cough", " gout.", " a long and unusual cough since last May", "", " gout."]
    model, tokenizer = base.model, base.tokenizer
    together = log_probabilities(model, tokenizer, prompt, texts, 160)
    for size in (1, 40):
        apart = log_probabilities(model, tokenizer, prompt, texts, 160, microbatch_tokens=size)
        assert apart == pytest.approx(together, abs=1e-4)
    assert together[3] == 0
    assert together[1] == pytest.approx(together[4], abs=1e-6)
    assert all(each < 0 for each in together[:3])


def test_a_prompt_that_begins_as_records_do_gets_no_second_first_token(base: LoadedModel) -> None:
    model, tokenizer = base.model, base.tokenizer
    with_it, without = (
        log_probabilities(model, tokenizer, prompt, [" cough"], 160)
        for prompt in (f"{tokenizer.bos_token}The patient has a", "The patient has a")
    )
    assert with_it == without


def test_the_model_is_left_in_its_mode(base: LoadedModel) -> None:
    base.model.train()
    log_probabilities(base.model, base.tokenizer, "A", [" cough"], 160)
    assert base.model.training
    with pytest.raises(SpecError, match="shorten the prompt"):
        log_probabilities(base.model, base.tokenizer, "A cough. " * 99, [" cough"], 160)
    base.model.eval()


def test_derived_figures() -> None:
    score = Likelihood(nats=20.0, tokens=10, correct=4)
    assert score.perplexity == pytest.approx(math.exp(2))
    assert score.token_accuracy == 0.4
    assert Likelihood(0.0, 0).token_accuracy == 0
