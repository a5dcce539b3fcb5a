"""Canaries are many, different, independent of every seed, and in by fair coins."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from taciturn.engine.auditing.canaries import check_number, draw_canaries
from taciturn.errors import SpecError
from taciturn.spec import CanaryKind

KINDS: tuple[CanaryKind, ...] = ("random", "new-token", "secret")


@pytest.fixture(scope="module")
def tokenizer(tiny_medical: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_medical)


def read(tokenizer: Any, texts: tuple[str, ...]) -> list[list[int]]:
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(ids) for ids in found]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_there_once(kind: CanaryKind, tokenizer: Any) -> None:
    canaries = draw_canaries(kind, 300, tokenizer)
    assert len(set(canaries.texts)) == len(canaries) == len(canaries.included_N) == 300
    special = set(tokenizer.all_special_ids)
    assert all(ids and not special & set(ids) for ids in read(tokenizer, canaries.texts))


def test_each_new_token_is_one_rare_token(tokenizer: Any) -> None:
    canaries = draw_canaries("new-token", 500, tokenizer)
    tokens = [set(ids) for ids in read(tokenizer, canaries.texts)]
    assert all(len(each) == 1 for each in tokens)
    assert len(set.union(*tokens)) == 500
    assert min(set.union(*tokens)) > len(tokenizer) / 2


def test_random_ones_come_from_the_whole_vocabulary(tokenizer: Any) -> None:
    canaries = draw_canaries("random", 500, tokenizer)
    tokens = {token for ids in read(tokenizer, canaries.texts) for token in ids}
    assert len(tokens) > len(tokenizer) / 2


def test_secrets_are_about_different_people(tokenizer: Any) -> None:
    texts = draw_canaries("secret", 2000, tokenizer).texts
    people = [" ".join(text.split()[:2]) for text in texts]
    assert len(set(people)) > 1990  # some family names are of two words


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_have_two_texts_each(kind: CanaryKind, tokenizer: Any) -> None:
    canaries = draw_canaries(kind, 100, tokenizer, pairs=True)
    assert (len(canaries), len(canaries.included_N)) == (100, 100)
    assert len({*canaries.texts, *canaries.rejected}) == 200
    assert not draw_canaries(kind, 100, tokenizer).rejected


@pytest.mark.parametrize("kind", KINDS)
def test_no_seed_repeats_them(kind: CanaryKind, tokenizer: Any) -> None:
    drawn = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        drawn.append(draw_canaries(kind, 100, tokenizer))
    assert drawn[0].texts != drawn[1].texts
    assert drawn[0].included_N.tolist() != drawn[1].included_N.tolist()


def test_coins_are_fair_and_independent_of_each_other(tokenizer: Any) -> None:
    coins = np.array([draw_canaries("random", 500, tokenizer).included_N for _ in range(4)])
    assert stats.binomtest(int(coins.sum()), coins.size, 0.5).pvalue > 1e-6
    neighbours = coins[:, :-1] == coins[:, 1:]
    assert stats.binomtest(int(neighbours.sum()), neighbours.size, 0.5).pvalue > 1e-6


@pytest.mark.parametrize(("kind", "number"), [("new-token", 6000), ("secret", 100_000)])
def test_more_than_there_are(kind: CanaryKind, number: int, tokenizer: Any) -> None:
    with pytest.raises(SpecError, match=f"canaries={number} exceeds the [0-9]+ different"):
        draw_canaries(kind, number, tokenizer)
    with pytest.raises(SpecError, match=f"canaries={number} exceeds the [0-9]+ different"):
        draw_canaries(kind, number, tokenizer, pairs=True)


def test_too_few_for_any_bound() -> None:
    check_number(0)
    check_number(6)
    for number in (1, 5):
        with pytest.raises(SpecError, match=f"canaries={number} can give no bound.*at least 6"):
            check_number(number)
