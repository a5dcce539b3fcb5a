"""The judge of samples: passes notes it hasn't seen, and nothing else; its errors are measured."""

from __future__ import annotations

import json
import time
from dataclasses import astuple
from functools import cache
from random import Random

import pytest

from taciturn.demo import judge as judging
from taciturn.demo.judge import ErrorRates, Judge, Text, openings, repetition
from taciturn.embedded import TINY_MEDICAL
from taciturn.embedded.notes import DEFAULT_LIMITS, NoteLimits, held_out_notes
from taciturn.llm import LLM
from taciturn.spec import DemoSpec, parse

PROMPT = "Man of 45, farmer,"
GIBBERISH = (
    " for 7.9, 2017, 2017, 2017, 2017",
    " Mrrt, 2017.",
    " for Mr. Mr. Mr. Mr. M. M. M. M. M. M. M. M. M. M. M. M.",
    " 48.",
    " 5 months.",
    "",
    " \n",
    " BP 140/80. BP 140/80. BP 140/80. BP 140/80. BP 140/80.",
    " the a of and with for in to has was is on at by from",
    " mg asks twice opinion dementia a daily second. on Social for; no",
)
SHORT = NoteLimits(notes=1, characters=110)


@cache
def base_texts() -> list[Text]:
    """What the embedded base model writes itself."""
    frame = LLM(TINY_MEDICAL).sample(
        openings(64), temperature=0.5, max_new_tokens=40, seed=5, batch_size=64
    )
    return list(zip(frame["prompt"], frame["text"], strict=True))


@cache
def judge() -> Judge:
    return Judge(base_texts())


def notes(seed: int, limits: NoteLimits = DEFAULT_LIMITS, prompt_words: int = 4) -> list[Text]:
    """Notes of patients whom the judge has not seen, each cut into a prompt and the rest."""
    texts = [json.loads(row["context"])["text"] for row in held_out_notes(seed, 100, limits)]
    split = [text.split(" ") for text in texts]
    return [(" ".join(w[:prompt_words]), " " + " ".join(w[prompt_words:])) for w in split]


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def problems(judge: Judge) -> list[str]:
    """What a judge gets wrong of texts that are new to it."""
    rng, found = Random(3), []
    fresh = notes(seed=11) + notes(seed=12, prompt_words=6)
    shuffled = [(p, " " + " ".join(rng.sample(t.split(), len(t.split())))) for p, t in fresh]
    looped = [(p, " ".join([*t.split()[:5]] * 4)) for p, t in fresh]
    if share([judge.reads_as_note(*text) for text in fresh]) < 0.95:
        found.append("rejects notes")
    for name, texts in (("shuffled", shuffled), ("looped", looped), ("base", base_texts()[1::2])):
        if share([judge.reads_as_note(*text) for text in texts]) > 0.02:
            found.append(f"accepts {name} text")
    found += [f"accepts {text!r}" for text in GIBBERISH if judge.reads_as_note(PROMPT, text)]
    return found


def test_notes_pass_and_the_rest_does_not() -> None:
    assert problems(judge()) == []


@pytest.mark.parametrize("limits", [NoteLimits(notes=2), SHORT], ids=["two", "short"])
def test_fewer_and_shorter_notes_are_judged_by_their_own_measure(limits: NoteLimits) -> None:
    own = Judge(base_texts(), limits)
    assert share([own.reads_as_note(*text) for text in notes(21, limits, 3)]) > 0.93
    assert not [text for text in GIBBERISH if own.reads_as_note(PROMPT, text)]
    assert not any(own.reads_as_note(*text) for text in base_texts())
    taken, asked = own.rates.shuffled
    assert taken <= 0.05 * asked


def test_its_error_rates_are_measured_on_texts_that_it_has_not_seen() -> None:
    rates = judge().rates
    assert rates.base == (0, 32)
    for taken, asked in (rates.shuffled, rates.repeated):
        assert asked == rates.notes[1] > 300
        assert taken <= 0.02 * asked
    assert rates.notes[0] >= 0.95 * rates.notes[1]


def test_no_seed_of_the_demo_draws_the_notes_that_it_learned_from() -> None:
    seeds = {judging._LEARNT_SEED, judging._CALIBRATION_SEED, judging._MEASURED_SEED}
    assert len(seeds) == 3
    for seed in seeds:
        with pytest.raises(Exception, match="seed"):
            parse(DemoSpec, {"seed": seed})


def test_what_the_base_model_writes_by_itself_does_not_pass() -> None:
    """Not even a note, if it is the base model's: nothing would have been learned."""
    prompt, text = next(note for note in notes(31) if judge().reads_as_note(*note))
    assert not Judge([(prompt, text)] * 20).reads_as_note(prompt, text)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("no least score", "accepts shuffled"),
        ("any length", "accepts ' 5 months.'"),
        ("loops", "accepts ' BP 140"),
        ("always yes", "accepts base"),
        ("always no", "rejects notes"),
    ],
)
def test_a_broken_judge_is_found(broken: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """These checks notice each part of the judge that is missing."""
    bounds = judging._bounds(DEFAULT_LIMITS)
    changes = {"no least score": (-1e9, bounds[1]), "any length": (bounds[0], 0)}
    if broken == "loops":
        monkeypatch.setattr(judging, "_MOST_REPEATED", 1.0)
    if broken.startswith("always"):
        monkeypatch.setattr(Judge, "reads_as_note", lambda self, *text: broken == "always yes")
    monkeypatch.setattr(judging, "_bounds", lambda limits: changes.get(broken, bounds))
    assert [problem for problem in problems(Judge(base_texts())) if problem.startswith(found)]


def test_the_same_texts_give_the_same_judge_in_seconds_of_processor_time() -> None:
    judging._note_trigrams.cache_clear()
    judging._bounds.cache_clear()
    start = time.process_time()
    again = Judge(base_texts())
    assert time.process_time() - start < 4  # 1 on an idle processor
    assert again.rates == judge().rates
    assert again._least_score == judge()._least_score


def test_a_base_model_that_writes_nothing_can_be_judged_too() -> None:
    silent = Judge([(prompt, "") for prompt in openings(4)])
    assert silent.rates.base == (0, 2)
    assert all(isinstance(taken, int) for taken, _ in astuple(silent.rates))
    assert Judge([]).rates == ErrorRates(
        silent.rates.notes, silent.rates.shuffled, silent.rates.repeated, (0, 0)
    )


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("No fever.", 0, 0),
        ("Takes apixaban 5 mg twice daily. HR 104, BP 142/86.", 0, 0),
        ("2017, 2017, 2017, 2017, 2017, 2017", 0.75, 0.85),
        ("Mr. Mr. Mr. Mr. Mr. Mr.", 0.75, 0.85),
        ("She denies pain at night. She denies pain at night.", 0.35, 0.45),
    ],
)
def test_repetition(text: str, least: float, most: float) -> None:
    assert least <= repetition(text) <= most
