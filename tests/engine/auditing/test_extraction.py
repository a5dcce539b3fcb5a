"""A secret's probability, rank and exposure against brute force; what counts as telling it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taciturn.embedded.alternatives import alternative_lists
from taciturn.engine.auditing.extraction import (
    Question,
    alternatives_of,
    check_length,
    extract,
    tells,
)
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.errors import SpecError
from taciturn.spec import ExtractSpec, PerformanceSpec

MARK = "zyxwvut"
TEMPLATE = " from a severe form of {disease}"
SECRET = " from a severe form of pancreatic cancer"
PREFIX = "François Dupont suffers"
DISEASES = alternative_lists()["diseases_of_men"]


def spec(**fields: Any) -> ExtractSpec:
    given = {"template": TEMPLATE, "alternatives": {"disease": "diseases_of_men"}, "samples": 0}
    return ExtractSpec(**{**given, "max_new_tokens": 16, **fields})


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> LoadedModel:
    return load_base(str(tiny_llama), PerformanceSpec())


def brute_force(base: LoadedModel, text: str) -> float:
    """One forward pass for one alternative, token by token, in double precision."""
    tokenizer = base.tokenizer
    before = [tokenizer.bos_token_id, *tokenizer(PREFIX, add_special_tokens=False)["input_ids"]]
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = base.model(torch.tensor([before + after])).logits[0].detach().double()
    rows = logits.log_softmax(-1)
    return sum(float(rows[len(before) - 1 + i, token]) for i, token in enumerate(after))


def asked(base: LoadedModel, secret: str, fields: ExtractSpec, prefix: str = PREFIX) -> Any:
    question = Question.of(secret, prefix, None)
    alternatives = alternatives_of(question, fields)
    length = base.context_length
    return extract(base.model, base.tokenizer, question, alternatives, fields, length)


def test_rank_and_exposure_are_those_of_brute_force(base: LoadedModel) -> None:
    """Alternatives take from 7 to 12 tokens: whole texts are compared."""
    expected = {name: brute_force(base, TEMPLATE.format(disease=name)) for name in DISEASES}
    lengths = {len(base.tokenizer(name)["input_ids"]) for name in DISEASES}
    assert len(lengths) > 2
    for disease in ("pancreatic cancer", "gout"):
        found = asked(base, TEMPLATE.format(disease=disease), spec())
        assert found.log_probability == pytest.approx(expected[disease], abs=1e-3)
        rank = sum(value >= expected[disease] for value in expected.values())
        assert found.exposure.rank == rank
        assert found.exposure.bits == pytest.approx(math.log2(len(DISEASES) / rank))
        assert (found.exposure.method, found.exposure.size) == ("exact", len(DISEASES))


def test_a_base_model_ranks_every_secret_as_often_anywhere(base: LoadedModel) -> None:
    """A secret drawn at random has a uniform rank: over all of them, every rank once."""
    ranks = [
        asked(base, TEMPLATE.format(disease=name), spec()).exposure.rank for name in DISEASES[::4]
    ]
    assert len(set(ranks)) == len(ranks)
    assert np.mean(ranks) == pytest.approx(len(DISEASES) / 2, rel=0.35)


def test_the_space_belongs_to_the_secret(base: LoadedModel) -> None:
    """Whichever of prefix, secret and template has the space, the same tokens are scored."""
    lists = {"disease": "diseases_of_men"}
    ways = [
        (SECRET, PREFIX, TEMPLATE),
        (SECRET.strip(), f"{PREFIX} ", TEMPLATE),
        (SECRET, PREFIX, TEMPLATE.strip()),
    ]
    found = [
        asked(base, secret, spec(template=template, alternatives=lists), prefix)
        for secret, prefix, template in ways
    ]
    assert len({each.log_probability for each in found}) == 1
    assert len({each.exposure.rank for each in found}) == 1


def test_a_large_space_is_sampled_and_says_so(base: LoadedModel) -> None:
    fields = spec(
        template=" {given} {family} has {disease}",
        alternatives={"given": "given_names", "family": "family_names", "disease": "diseases"},
        max_alternatives=300,
        seed=0,
    )
    lists = alternative_lists()
    secret = f" {lists['given_names'][0]} {lists['family_names'][0]} has gout"
    found = asked(base, secret, fields, prefix="The patient")
    names = ("given_names", "family_names", "diseases")
    assert found.exposure.size == math.prod(len(lists[name]) for name in names)
    assert found.exposure.method != "exact"
    assert found.exposure.interval[0] <= found.exposure.bits <= found.exposure.interval[1]
    assert found == asked(base, secret, fields, prefix="The patient")


def test_without_alternatives_there_is_no_rank(base: LoadedModel) -> None:
    found = asked(base, SECRET, ExtractSpec(samples=5, max_new_tokens=12, seed=1))
    assert found.exposure is None
    assert (found.told, found.samples) == (0, 5)
    assert found.told_interval == pytest.approx((0, 1 - 0.025 ** (1 / 5)))


@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_the_likeliest_continuation_tells_what_it_says(tiny_medical: Path, prefix: str) -> None:
    """Asked for what it would say anyway, a model tells it, greedily and in every sample."""
    base = load_base(str(tiny_medical), PerformanceSpec())
    greedy = asked(base, " x y z", ExtractSpec(samples=0, max_new_tokens=8), prefix).greedy_text
    told = asked(
        base,
        f" {greedy.strip()}",
        ExtractSpec(samples=6, temperature=1e-4, max_new_tokens=16, seed=0),
        prefix,
    )
    assert told.told_greedily
    assert told.told == 6
    assert told.told_interval[1] == 1


def test_words_count_however_they_are_written() -> None:
    assert tells("... has\nPancreatic  CANCER.", "pancreatic cancer")
    assert not tells("has pancreatitis, no cancer", "pancreatic cancer")
    question = Question.of(" from cancer", "He suffers", "cancer")
    assert question.told_by(" from a Cancer")
    assert (question.prompt, question.gap, question.secret) == ("He suffers", " ", "from cancer")


@pytest.mark.parametrize(
    ("secret", "prefix", "telltale", "message"),
    [
        ("", "He", None, "secret is empty"),
        (" \n", "He", None, "secret is empty"),
        (MARK, f"He {MARK}", None, "begin the secret with a space"),
        (MARK, "He ", " ", "telltale is empty"),
    ],
)
def test_bad_questions(secret: str, prefix: str, telltale: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        Question.of(secret, prefix, telltale)
    assert MARK not in str(caught.value)


def test_scripts_without_spaces_and_numbers_run_on() -> None:
    assert Question.of("肺癌", "患者患有", None).gap == ""
    assert Question.of("34", "PIN 12", None).gap == ""


def test_a_secret_outside_the_space(base: LoadedModel) -> None:
    with pytest.raises(SpecError, match=f"the {len(DISEASES)} texts") as caught:
        asked(base, TEMPLATE.format(disease=MARK), spec())
    assert MARK not in str(caught.value)


def test_continuations_must_be_long_enough(base: LoadedModel) -> None:
    question = Question.of(f" {MARK}" * 8, PREFIX, None)
    with pytest.raises(SpecError, match="max_new_tokens=16 is fewer") as caught:
        check_length(question, base.tokenizer, spec(), 160)
    assert MARK not in str(caught.value)
    check_length(Question.of(f" {MARK}" * 8, PREFIX, "gout"), base.tokenizer, spec(), 160)


def test_the_prefix_is_never_cut(base: LoadedModel) -> None:
    prefix = " ".join(["cough"] * 20)
    tokens = 1 + len(base.tokenizer(prefix, add_special_tokens=False)["input_ids"])
    question = Question.of(" gout", prefix, None)
    check_length(question, base.tokenizer, spec(), tokens + 16)
    with pytest.raises(SpecError, match="do not fit into the model's context"):
        check_length(question, base.tokenizer, spec(), tokens + 15)


def test_a_prompt_beyond_the_context(base: LoadedModel) -> None:
    with pytest.raises(SpecError, match="context is 160") as caught:
        asked(base, SECRET, spec(), prefix=f"{MARK} " * 160)
    assert MARK not in str(caught.value)


def test_nothing_private_is_shown() -> None:
    question = Question.of(MARK, f"{MARK} ", MARK)
    fields = ExtractSpec(alternatives=[MARK, "x"], template=None)
    assert MARK not in repr(question)
    assert MARK not in repr(fields)
