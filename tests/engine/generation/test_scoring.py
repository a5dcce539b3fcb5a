"""Log-probabilities of tokens against a forward pass of the embedded model, token by token."""

from __future__ import annotations

import json

import pytest
import torch

from taciturn.embedded import TINY_MEDICAL
from taciturn.engine.generation.sample import encoded, sample
from taciturn.engine.generation.scoring import LOWEST, score, texts_of
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.spec import PerformanceSpec, SampleSpec

PROMPT = "A 53-year-old man came with fever"


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_base(TINY_MEDICAL, PerformanceSpec())


def brute_force(base: LoadedModel, row: list[int]) -> list[float]:
    """Log-probability of each token after the first, each from a forward pass of its own."""
    figures = []
    for end in range(1, len(row)):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([row[:end]])).logits[0, -1]
        figures.append(float(logits.double().log_softmax(-1)[row[end]]))
    return figures


def test_scores_are_those_of_the_model(base: LoadedModel) -> None:
    ((lead, own),) = encoded(base.model, base.tokenizer, [PROMPT], 8, base.context_length)
    spec = SampleSpec(max_new_tokens=8, temperature=0.7, seed=1)
    (row,) = sample(base.model, base.tokenizer, [PROMPT], spec, base.context_length)
    assert len(row.ids) == row.tokens
    prompt, written = score(base.model, base.tokenizer, lead, own, row.ids, n_likeliest=3)
    figures = [token.log_probability for token in (*prompt, *written)]
    expected = brute_force(base, [*lead, *own, *row.ids])
    if not lead:
        assert figures.pop(0) is None, "nothing comes before the first token"
    assert figures == pytest.approx(expected[-len(figures) :], abs=1e-4)
    assert "".join(token.text for token in prompt) == PROMPT
    assert "".join(token.text for token in written if not token.special) == row.text
    for token in written:
        values = [value for _, value in token.likeliest]
        assert values == sorted(values, reverse=True)
        assert token.log_probability is not None
        assert token.log_probability <= values[0]


def test_a_text_is_scored_the_same_in_any_company(base: LoadedModel) -> None:
    """The same bits, whatever else the request asks for."""
    spec = SampleSpec(max_new_tokens=6, temperature=0)
    alone = sample(base.model, base.tokenizer, [PROMPT], spec, base.context_length)
    company = sample(
        base.model, base.tokenizer, ["B", PROMPT, PROMPT * 3], spec, base.context_length
    )
    ((lead, own),) = encoded(base.model, base.tokenizer, [PROMPT], 6, base.context_length)
    one = score(base.model, base.tokenizer, lead, own, alone[0].ids)
    score(base.model, base.tokenizer, [], [5, 6, 7])
    other = score(base.model, base.tokenizer, lead, own, company[1].ids, n_likeliest=5)
    assert [t.log_probability for t in one[0]] == [t.log_probability for t in other[0]]
    if alone[0].ids == company[1].ids:
        assert [t.log_probability for t in one[1]] == [t.log_probability for t in other[1]]


def test_texts_of_tokens_are_the_text(base: LoadedModel) -> None:
    text = "Müller 😀 naïve 中文 <end>"
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = base.tokenizer.eos_token_id
    texts = texts_of(base.tokenizer, [*ids, end])
    assert "".join(piece for piece, special in texts if not special) == text
    assert texts[-1] == (base.tokenizer.eos_token, True)
    assert len(texts) == len(ids) + 1


def test_what_is_impossible_is_a_number(base: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = base.model.forward

    def masked(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits[..., 9] = -torch.inf
        return output

    monkeypatch.setattr(base.model, "forward", masked)
    (_, token), _ = score(base.model, base.tokenizer, [], [5, 9])
    assert token.log_probability == LOWEST
    assert json.dumps(token.log_probability, allow_nan=False)
