"""Does a model tell a secret? Its probability, its rank among alternatives, and what is written.

Asking a released model is post-processing: what it answers carries the model's guarantee. The
secret and the text before it are the asker's own knowledge; no message and no result quotes them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pandas as pd

from taciturn.engine.auditing.alternatives import AlternativeSpace
from taciturn.engine.auditing.exposure import Exposure, estimated_exposure, exact_exposure
from taciturn.engine.auditing.intervals import Interval, clopper_pearson
from taciturn.engine.evaluation.likelihood import log_probabilities
from taciturn.engine.generation.sample import sample
from taciturn.errors import SpecError
from taciturn.spec import ExtractSpec, SampleSpec, check_text

# Scripts before Thai put spaces between words.
_SPACED_SCRIPTS = "\u0e00"


@dataclass(frozen=True, slots=True, repr=False)
class Question:
    """The secret, taken apart.

    Attributes:
        prompt: what the model is given, without white space at its end.
        gap: the white space between prompt and secret. It belongs to what is scored, because
            tokenisers join it to the word after it.
        secret: without white space at its beginning.
        telltale: words that give the secret away wherever they follow the prompt.
    """

    prompt: str
    gap: str
    secret: str
    telltale: str

    @classmethod
    def of(cls, secret: str, prefix: str, telltale: str | None) -> Question:
        """Raises SpecError, which quotes none of them."""
        for name, text in (("secret", secret), ("prefix", prefix), ("telltale", telltale or "")):
            check_text(name, text)
        if not secret.strip():
            raise SpecError("the secret is empty; give the text that the model should not tell")
        prompt, start = prefix.rstrip(), secret.lstrip()
        gap = prefix[len(prompt) :] + secret[: len(secret) - len(start)]
        if not gap and prompt and _joins_words(prompt[-1], start[0]):
            raise SpecError(
                "prefix and secret would run into one word; begin the secret with a space"
            )
        if telltale is not None and not telltale.strip():
            raise SpecError("the telltale is empty; leave it out to look for the secret itself")
        return cls(prompt, gap, start, telltale or secret)

    def told_by(self, continuation: str) -> bool:
        """True if a continuation of the prompt gives the secret away."""
        return tells(continuation, self.telltale)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Answers of one model about the secret.

    Attributes:
        log_probability: natural logarithm of p(secret | prefix), over all its tokens.
        exposure: among the alternatives; None if there are none.
        told_greedily: whether the likeliest continuation, word for word, tells the secret.
        told: how many of `samples` continuations tell it.
        samples: continuations that were sampled.
        told_interval: of the chance that one more would; Clopper-Pearson.
        greedy_text: the likeliest continuation.
    """

    log_probability: float
    exposure: Exposure | None
    told_greedily: bool
    told: int
    samples: int
    told_interval: Interval
    greedy_text: str = field(repr=False)

    @property
    def log10_probability(self) -> float:
        """The same probability as a power of ten."""
        return self.log_probability / math.log(10)


@dataclass(frozen=True, slots=True)
class Extraction:
    """A secret, asked of the base model and, once fitted, of the fitted one.

    Attributes:
        base: of the base model, which never saw the data.
        fitted: of the fitted model.
        policy: the guarantee that the fitted model, and so this result, carries.
        confidence: of every interval.
    """

    base: Extracted
    fitted: Extracted | None
    policy: str
    confidence: float

    def frame(self) -> pd.DataFrame:
        """One row per model."""
        rows = [{"model": "base", **_flat(self.base)}]
        if self.fitted is not None:
            rows.append({"model": "fitted", **_flat(self.fitted)})
        frame = pd.DataFrame(rows)
        frame["policy"] = self.policy
        frame.attrs["policy"] = self.policy
        return frame

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return dataclasses.asdict(self)


def tells(text: str, telltale: str) -> bool:
    """True if `text` holds `telltale`, however it is spaced and capitalised."""
    return " ".join(telltale.split()).casefold() in " ".join(text.split()).casefold()


def alternatives_of(question: Question, spec: ExtractSpec) -> tuple[list[str], int] | None:
    """Other values that the secret could have: all of it, or a random sample; and the size of the
    space.

    None if the spec names no alternatives.

    Raises:
        SpecError: the secret is not in the space, or there is no such space.
    """
    if spec.template is None and not spec.alternatives:
        return None
    space = AlternativeSpace.of(spec.template, spec.alternatives, spec.max_alternatives)
    space.check(question.secret)
    if space.size <= spec.max_alternatives:
        candidates = list(dict.fromkeys(space.texts()))
    else:
        candidates = space.draw(spec.max_alternatives, Random(spec.seed))
    return [text for text in candidates if text != question.secret], space.size


def extract(
    model: Any,
    tokenizer: Any,
    question: Question,
    alternatives: tuple[list[str], int] | None,
    spec: ExtractSpec,
    context_length: int,
) -> Extracted:
    """Ask one model; see LLM.extract. `alternatives` come from `alternatives_of`."""
    other_texts, size = alternatives or ([], 0)
    texts = [question.gap + text for text in [question.secret, *other_texts]]
    secret, *rest = log_probabilities(model, tokenizer, question.prompt, texts, context_length)
    exposure = None
    if alternatives is not None:
        exposure = _exposure(secret, np.array(rest), size, spec.confidence)
    greedy = _continuations(model, tokenizer, question, _greedy(spec), context_length)
    sampled: list[str] = []
    if spec.samples:
        sampled = _continuations(model, tokenizer, question, _sampling(spec), context_length)
    telling_samples = sum(question.told_by(text) for text in sampled)
    interval = clopper_pearson(telling_samples, len(sampled), spec.confidence)
    return Extracted(
        secret,
        exposure,
        question.told_by(greedy[0]),
        telling_samples,
        len(sampled),
        interval,
        greedy[0],
    )


def check_length(
    question: Question, tokenizer: Any, spec: ExtractSpec, context_length: int
) -> None:
    """Raise SpecError if no continuation could tell the secret, or the prompt would be cut."""
    prompt, telltale = tokenizer([question.prompt, question.telltale], add_special_tokens=False)[
        "input_ids"
    ]
    if len(telltale) > spec.max_new_tokens:
        raise SpecError(
            f"max_new_tokens={spec.max_new_tokens} is fewer tokens than the secret takes, so that "
            "no continuation could tell it; raise it"
        )
    if 1 + len(prompt) + spec.max_new_tokens > context_length:
        raise SpecError(
            f"prefix and max_new_tokens={spec.max_new_tokens} do not fit into the model's context "
            f"of {context_length} tokens; lower it or shorten the prefix"
        )


def _exposure(secret: float, alternative_log_p: Any, size: int, confidence: float) -> Exposure:
    if len(alternative_log_p) + 1 == size:
        return exact_exposure(secret, alternative_log_p)
    return estimated_exposure(secret, alternative_log_p, size, confidence)


def _greedy(spec: ExtractSpec) -> SampleSpec:
    return SampleSpec(temperature=0, max_new_tokens=spec.max_new_tokens)


def _sampling(spec: ExtractSpec) -> SampleSpec:
    return SampleSpec(
        n=spec.samples,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=spec.max_new_tokens,
        seed=spec.seed,
        batch_size=spec.batch_size,
    )


def _continuations(
    model: Any, tokenizer: Any, question: Question, spec: SampleSpec, context_length: int
) -> list[str]:
    rows = sample(model, tokenizer, [question.prompt], spec, context_length)
    return [row.text for row in rows]


def _joins_words(before: str, after: str) -> bool:
    return all(character.isalpha() and character < _SPACED_SCRIPTS for character in (before, after))


def _flat(outcome: Extracted) -> dict[str, Any]:
    exposure = outcome.exposure
    return {
        "log_probability": outcome.log_probability,
        "rank": None if exposure is None else exposure.rank,
        "alternatives": None if exposure is None else exposure.size,
        "exposure_bits": None if exposure is None else exposure.bits,
        "exposure_low": None if exposure is None else exposure.interval[0],
        "exposure_high": None if exposure is None else exposure.interval[1],
        "method": None if exposure is None else exposure.method,
        "told_greedily": outcome.told_greedily,
        "told": outcome.told,
        "samples": outcome.samples,
        "told_low": outcome.told_interval[0],
        "told_high": outcome.told_interval[1],
        "greedy_text": outcome.greedy_text,
    }
