"""Does a text read as a note? A judge that knows notes from other notes than those anybody saw.

It holds two trigram models over words (Witten and Bell's interpolation, figures reduced to their
shape): one of invented notes on which no model is fitted or evaluated, one of text that the base
model writes itself. How unlikely a real note may be, it takes from further notes, and how often it
errs is measured on others again. It knows wording, not medicine: what it passes may be nonsense to
a doctor.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from taciturn.embedded.notes import DEFAULT_LIMITS, NoteLimits, held_out_notes

Text = tuple[str, str]
"""A prompt, and what was written after it."""

# No seed of the demo is negative: nothing that a model is evaluated on is among these notes.
_LEARNT_SEED, _CALIBRATION_SEED, _MEASURED_SEED = -1, -2, -3
_LEARNT_PATIENTS, _CALIBRATION_PATIENTS, _MEASURED_PATIENTS = 1000, 400, 200
_MOST_REPEATED = 0.1  # of 700 notes, none repeats more than 7% of its trigrams
_UNSEEN_WORD = 1e-5
_PROMPT_WORDS = 3
_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|\w+|[^\w\s]")


def repetition(text: str) -> float:
    """Share of a text's word trigrams that it has written before, in [0, 1)."""
    words = _WORD.findall(text.casefold())
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Verdicts of the judge on texts that it had not seen, each as (taken for a note, all)."""

    notes: tuple[int, int]
    shuffled: tuple[int, int]
    """The same notes, the words after the prompt in random order."""
    repeated: tuple[int, int]
    """The same notes, the first half of what follows the prompt written twice."""
    base: tuple[int, int]
    """Text that the base model wrote."""


class Judge:
    """Tells notes from other text; the same texts give the same judge."""

    def __init__(self, base_texts: Sequence[Text], limits: NoteLimits = DEFAULT_LIMITS) -> None:
        """Learns from one half of what the base model wrote; on the other its errors are measured.

        Args:
            base_texts: written after `openings`, or other beginnings of notes.
            limits: how the notes were drawn that the models are fitted on.
        """
        self._notes = _note_trigrams()
        self._base = _Trigrams(_words(prompt + text) for prompt, text in base_texts[::2])
        self._least_score, self._least_words = _bounds(limits)
        self.rates = self._measured(base_texts[1::2], limits)

    def reads_as_note(self, prompt: str, continuation: str) -> bool:
        """True if what follows the prompt is as likely as a note's text is, and likelier as that
        than as the base model's; if the whole is as long as a note; and if it does not loop."""
        before, text = _words(prompt), _words(_whole_words(continuation))
        if len(before) + len(text) < self._least_words or repetition(continuation) > _MOST_REPEATED:
            return False
        score = self._notes.score(before, text)
        return score >= self._least_score and score > self._base.score(before, text)

    def _measured(self, base_texts: Sequence[Text], limits: NoteLimits) -> ErrorRates:
        rng = Random("taciturn judge")
        notes = _split_notes(_MEASURED_SEED, _MEASURED_PATIENTS, limits)

        def passed(change: Callable[[list[str]], list[str]]) -> tuple[int, int]:
            changed = [(prompt, " ".join(change(text.split()))) for prompt, text in notes]
            return self._passed(changed)

        return ErrorRates(
            notes=passed(lambda words: words),
            shuffled=passed(lambda words: rng.sample(words, len(words))),
            repeated=passed(lambda words: words[: (len(words) + 1) // 2] * 2),
            base=self._passed(base_texts),
        )

    def _passed(self, texts: Sequence[Text]) -> tuple[int, int]:
        return sum(self.reads_as_note(*text) for text in texts), len(texts)


def openings(n: int, limits: NoteLimits = DEFAULT_LIMITS) -> list[str]:
    """Beginnings of `n` notes, for the base model to go on from."""
    notes = _split_notes(_CALIBRATION_SEED, n, limits)
    return [prompt for prompt, _ in notes[:n]]


class _Trigrams:
    """Probability of a word after the two before it."""

    def __init__(self, texts: Iterable[list[str]]) -> None:
        self._counts: dict[tuple[str, ...], int] = defaultdict(int)
        self._followed: dict[tuple[str, ...], int] = defaultdict(int)
        self._followers: dict[tuple[str, ...], int] = defaultdict(int)
        for text in texts:
            padded = ["", "", *text]
            for end in range(2, len(padded)):
                for start in range(end - 2, end + 1):
                    self._count(tuple(padded[start:end]), padded[end])

    def _count(self, before: tuple[str, ...], word: str) -> None:
        self._followers[before] += (*before, word) not in self._counts
        self._counts[*before, word] += 1
        self._followed[before] += 1

    def score(self, before: list[str], text: list[str]) -> float:
        """Mean natural logarithm of the probability of a word of `text`, which follows `before`."""
        padded = ["", "", *before, *text]
        start = len(padded) - len(text)
        logs = [math.log(self._probability(padded, end)) for end in range(start, len(padded))]
        return sum(logs) / len(logs) if logs else -math.inf

    def _probability(self, words: list[str], end: int) -> float:
        """Probability of a word: each longer context has its say in proportion to how often, and
        how variously, it was followed; `get`, since asking must not make entries."""
        probability = _UNSEEN_WORD
        for start in (end, end - 1, end - 2):
            before = tuple(words[start:end])
            followers = self._followers.get(before, 0)
            if followers:
                count = self._counts.get((*before, words[end]), 0)
                followed = self._followed[before]
                probability = (count + followers * probability) / (followed + followers)
        return probability


@cache
def _note_trigrams() -> _Trigrams:
    """Trigrams of notes of the usual length, whose sentences are those of shorter ones, too."""
    notes = _notes(_LEARNT_SEED, _LEARNT_PATIENTS, DEFAULT_LIMITS)
    return _Trigrams(map(_words, notes))


@cache
def _bounds(limits: NoteLimits) -> tuple[float, int]:
    """The least score and number of words of a note: what 99 in 100 notes reach; and the score is
    one that 99 in 100 notes with shuffled words do not reach, which counts where notes are short.
    """
    rng = Random("taciturn judge's bounds")
    notes = [
        (_words(prompt), _words(text))
        for prompt, text in _split_notes(_CALIBRATION_SEED, _CALIBRATION_PATIENTS, limits)
    ]
    score = _note_trigrams().score
    scores = sorted(score(before, text) for before, text in notes)
    shuffled = sorted(score(before, rng.sample(text, len(text))) for before, text in notes)
    lengths = sorted(len(before) + len(text) for before, text in notes)
    place = len(notes) // 100
    return max(scores[place], shuffled[-1 - place]), lengths[place]


def _notes(seed: int, n_patients: int, limits: NoteLimits) -> list[str]:
    return [json.loads(row["context"])["text"] for row in held_out_notes(seed, n_patients, limits)]


def _split_notes(seed: int, n_patients: int, limits: NoteLimits) -> list[Text]:
    """Notes as a prompt of some words and the rest."""
    split = [note.split(" ") for note in _notes(seed, n_patients, limits)]
    return [
        (" ".join(words[:_PROMPT_WORDS]), " " + " ".join(words[_PROMPT_WORDS:])) for words in split
    ]


def _words(text: str) -> list[str]:
    """Words and marks in lower case; every figure is reduced to its shape: 7.9 to 0.0."""
    return [re.sub(r"\d", "0", word) for word in _WORD.findall(text.casefold())]


def _whole_words(text: str) -> str:
    """Without a last word that the limit of tokens may have cut."""
    stripped = text.rstrip()
    return stripped if not stripped or not stripped[-1].isalnum() else stripped.rpartition(" ")[0]
