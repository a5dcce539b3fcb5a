"""The demo's report: one self-contained HTML page that loads nothing and says what held.

Text from models and prompts is escaped by the template; the page forbids itself every request by
a content security policy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from taciturn.demo.result import (
    DemoResult,
    FitSettings,
    ModelOutcome,
    Sample,
    Secret,
)
from taciturn.reports.html.bars import Bar, bar_chart
from taciturn.reports.html.numbers import NBSP, number, optional, percent, probability, scientific
from taciturn.reports.html.scales import linear_scale, log10_scale
from taciturn.reports.html.spending import spending_chart
from taciturn.reports.html.templates import fill

__all__ = ["DemoResult", "FitSettings", "ModelOutcome", "Sample", "Secret", "render_page"]

_MODELS = ("base", "non_private", "private")
_SCALE_WORDS = ("", " thousand", " million", " billion", " trillion")
_GUESS = 0.01


@dataclass(frozen=True)
class _Answers:
    """One model's answers to one prompt, ready to show."""

    key: str
    name: str
    n_telling: int
    n_answers: int
    judged: int
    notes: int
    distinct: tuple[tuple[Markup, int], ...]
    """Each different continuation, and how often it came."""


@dataclass(frozen=True)
class _Worth:
    """One row of the table of what was learned."""

    name: str
    share: str
    notes: str
    repetition: str


@dataclass(frozen=True)
class _Measured:
    """One row of the table beside the secret's probability."""

    key: str
    name: str
    one_in: str
    control: str | None
    ratio: str | None
    rank: int | None


def render_page(result: DemoResult) -> str:
    """The whole report as one HTML file."""
    return fill(
        Path(__file__).with_name("page.html"),
        result=result,
        report=result.report,
        secret=result.secret,
        secret_answers=[
            _answers(result, key, result.secret.prompt) for key in _models_with_samples(result)
        ],
        other_answers=[
            (prompt, [_answers(result, key, prompt) for key in _models_with_samples(result)])
            for prompt in _other_prompts(result)
        ],
        measured=[_measured(result, key) for key in _MODELS],
        worth=[_worth(result, key) for key in _MODELS],
        passed={
            name: "{:,} of {:,}".format(*getattr(result.judge, name))
            for name in ("notes", "shuffled", "repeated", "base")
        },
        probability_chart=_probability_chart(result),
        epsilon_chart=spending_chart(result.epsilon_curve),
        perplexity_chart=_perplexity_chart(result),
        template_effect=_template_effect(result),
        verdict=result.verdict.replace("ε = ", f"ε{NBSP}={NBSP}"),
        private_name=_name(result, "private"),
        factor=number(math.exp(result.epsilon)),
        delta=scientific(math.log10(result.delta)),
        guess_before=f"{_GUESS:.0%}",
        guess_after=percent(_posterior(_GUESS, result.epsilon)),
        settings=_settings(result),
    )


def _name(result: DemoResult, key: str) -> str:
    return {
        "base": "Base model",
        "non_private": "Without privacy",
        "private": f"With DP (ε{NBSP}={NBSP}{result.epsilon:.3g})",
    }[key]


def _outcome(result: DemoResult, key: str) -> ModelOutcome:
    return {
        "base": result.base,
        "non_private": result.non_private,
        "private": result.private,
    }[key]


def _models_with_samples(result: DemoResult) -> list[str]:
    """The models that have samples; the base model's are optional."""
    return [key for key in _MODELS if _outcome(result, key).samples]


def _other_prompts(result: DemoResult) -> list[str]:
    prompts = [
        sample.prompt
        for key in _models_with_samples(result)
        for sample in _outcome(result, key).samples
    ]
    return [prompt for prompt in dict.fromkeys(prompts) if prompt != result.secret.prompt]


def _answers(result: DemoResult, key: str, prompt: str) -> _Answers:
    samples = [sample for sample in _outcome(result, key).samples if sample.prompt == prompt]
    return _Answers(
        key=key,
        name=_name(result, key),
        n_telling=sum(result.secret.told_by(sample) for sample in samples),
        n_answers=len(samples),
        judged=sum(sample.reads_as_note is not None for sample in samples),
        notes=sum(sample.reads_as_note is True for sample in samples),
        distinct=tuple(
            (_marked(sample, result.secret), count) for sample, count in Counter(samples).items()
        ),
    )


def _marked(sample: Sample, secret: Secret) -> Markup:
    """The escaped continuation, the secret's words in it marked."""
    text = " ".join(sample.continuation.split())
    if not secret.told_by(sample):
        return escape(text)
    start = text.casefold().find(secret.telltale.casefold())
    end = start + len(secret.telltale)
    return Markup("{}<mark>{}</mark>{}").format(text[:start], text[start:end], text[end:])


def _measured(result: DemoResult, key: str) -> _Measured:
    outcome = _outcome(result, key)
    log10 = outcome.secret_log_probability / math.log(10)
    control = outcome.control_log_probability
    return _Measured(
        key=key,
        name=_name(result, key),
        one_in=_one_in(log10),
        control=None if control is None else _one_in(control / math.log(10)),
        ratio=None if control is None else _times(outcome.secret_log_probability - control),
        rank=outcome.secret_rank,
    )


def _worth(result: DemoResult, key: str) -> _Worth:
    outcome = _outcome(result, key)
    return _Worth(
        name=_name(result, key),
        share=result.share_in_words(outcome),
        notes=f"{outcome.notes} of {outcome.judged}" if outcome.judged else "not asked",
        repetition=f"{outcome.repetition:.1%}" if outcome.samples else "not asked",
    )


def _probability_chart(result: DemoResult) -> Markup:
    logs = {key: _outcome(result, key).secret_log_probability / math.log(10) for key in _MODELS}
    bars = [Bar(_name(result, key), log10, probability(log10), key) for key, log10 in logs.items()]
    title = "Probability of the secret on a logarithmic scale"
    return bar_chart("probability", title, bars, log10_scale(list(logs.values())))


def _perplexity_chart(result: DemoResult) -> Markup:
    bars = [
        Bar(
            _name(result, key),
            _outcome(result, key).perplexity,
            f"{number(_outcome(result, key).perplexity)}"
            f" ({_outcome(result, key).held_out_loss:.2f} nats/token)",
            key,
        )
        for key in _MODELS
    ]
    scale = linear_scale([bar.value for bar in bars])
    return bar_chart("perplexity", "Perplexity on held-out patients' notes", bars, scale)


def _template_effect(result: DemoResult) -> bool:
    """True if the private model, too, finds the secret's sentence likelier than base did."""
    return result.private.secret_log_probability > result.base.secret_log_probability


def _settings(result: DemoResult) -> Sequence[tuple[str, str, str]]:
    left, right = result.non_private_fit, result.private_fit
    rows: list[tuple[str, Callable[[FitSettings], str]]] = [
        ("Trained", lambda fit: fit.method),
        ("Trainable parameters", lambda fit: f"{fit.trainable_parameters:,}"),
        ("Steps", lambda fit: f"{fit.steps:,}"),
        ("Learning rate", lambda fit: f"{fit.learning_rate:g}"),
        ("Expected batch", lambda fit: f"{fit.expected_batch_size:,} {fit.batch_of}"),
        ("Sampling probability", lambda fit: optional(fit.sampling_probability)),
        ("Clip (l2 norm of one patient's gradient)", lambda fit: optional(fit.l2_clip_norm)),
        ("Noise multiplier", lambda fit: optional(fit.noise_multiplier)),
        ("Time", lambda fit: _duration(fit.seconds)),
    ]
    return [(name, show(left), show(right)) for name, show in rows]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _posterior(prior: float, epsilon: float) -> float:
    """The most a guess at `prior` can become, delta left aside: odds grow by exp(epsilon)."""
    odds = prior / (1 - prior) * math.exp(epsilon)
    return odds / (1 + odds)


def _one_in(log10: float) -> str:
    """Probability such as "84%", "1 in 770" or "1 in 6.6 trillion"."""
    if log10 > -1:
        return f"{100 * 10**log10:.0f}%"
    thousands = min(int(-log10 // 3), len(_SCALE_WORDS) - 1)
    amount = 10 ** (-log10 - 3 * thousands)
    text = f"{amount:.2g}" if amount < 100 else f"{amount:,.0f}"
    return f"1 in {text}{_SCALE_WORDS[thousands]}"


def _times(log_ratio: float) -> str:
    """A ratio of probabilities, for example "0.93 ×" or "12,000 ×"."""
    ratio = math.exp(log_ratio)
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"
