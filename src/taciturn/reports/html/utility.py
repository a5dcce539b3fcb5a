"""Charts of what a model is worth, from released figures only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from taciturn.reports.figures import (
    Figure,
    ModelScore,
    Release,
    ReleasedDownstream,
    ReleasedEvaluation,
    ReleasedFigures,
)
from taciturn.reports.html.bars import Bar, bar_chart
from taciturn.reports.html.numbers import NBSP, number, scientific
from taciturn.reports.html.scales import linear_scale, share_scale
from taciturn.reports.privacy import PrivacyReport

_MARGIN = 1.96  # standard deviations to each side: 95% of the noise


@dataclass(frozen=True)
class Utility:
    """One evaluation, ready to show: charts under their titles, and on what basis."""

    title: str
    basis: str
    charts: tuple[tuple[str, Markup], ...]


def utilities(figures: ReleasedFigures, report: PrivacyReport) -> list[Utility]:
    """Every released evaluation of the model of `report`, oldest first."""
    return [
        *(_prediction(evaluation, n, report) for n, evaluation in enumerate(figures.evaluations)),
        *(_teaching(downstream, n, report) for n, downstream in enumerate(figures.downstream)),
    ]


def _prediction(evaluation: ReleasedEvaluation, place: int, report: PrivacyReport) -> Utility:
    models = [("Base model", evaluation.base, "base")]
    if evaluation.fitted is not None:
        name, style = _fitted(report)
        models.append((name, evaluation.fitted, style))
    charts = [
        ("Nats per token, lower is better", _nats(models, f"nats-{place}")),
        ("Tokens predicted right", _accuracies(models, f"accuracy-{place}")),
    ]
    if evaluation.ranked is not None:
        chart = _ranked(evaluation.ranked, place, report)
        charts.append(("Pairs of answers ranked as people did", chart))
    if all(score.mauve is not None for _, score, _ in models):
        charts.append(("Likeness of samples (MAUVE), higher is better", _likeness(models, place)))
    return Utility("Predicting a text", _basis(evaluation, report), tuple(charts))


def _teaching(downstream: ReleasedDownstream, place: int, report: PrivacyReport) -> Utility:
    name = f"downstream-{place}"
    bars = [
        _share_bar("Trained on synthetic text", downstream.accuracy, "private"),
        _share_bar("Always the commonest label", downstream.majority_accuracy, "base"),
    ]
    chart = bar_chart(name, "Accuracy on real text", bars, share_scale())
    trained = f"A classifier was trained on {downstream.n_train:,} synthetic texts and tested. "
    basis = trained + _basis(downstream, report)
    return Utility("Teaching a classifier", basis, (("Accuracy on real text", chart),))


def _fitted(report: PrivacyReport) -> tuple[str, str]:
    """Name and style of the fitted model."""
    if report.epsilon is None:
        return "Fitted, no privacy", "non_private"
    return f"Fitted (ε{NBSP}={NBSP}{report.epsilon:.3g})", "private"


Models = list[tuple[str, ModelScore, str]]


def _nats(models: Models, name: str) -> Markup:
    bars = [_nats_bar(label, score.nats_per_token, style) for label, score, style in models]
    scale = linear_scale([max([bar.value + bar.margin for bar in bars] + [1e-3])])
    return bar_chart(name, "Nats per token", bars, scale)


def _nats_bar(label: str, figure: Figure, style: str) -> Bar:
    if not math.isfinite(figure.value):
        return Bar(label, 0.0, "not a number", style)
    value = max(figure.value, 0.0)
    # With noise, perplexity would have an interval of its own, and a phone no room for it.
    perplexity = "" if figure.std else f" (perplexity {number(math.exp(min(value, 700.0)))})"
    text = f"{value:.3f}{_noise(figure, '.3f')}{perplexity}"
    return Bar(label, value, text, style, _MARGIN * figure.std)


def _accuracies(models: Models, name: str) -> Markup:
    bars = [_share_bar(label, score.token_accuracy, style) for label, score, style in models]
    return bar_chart(name, "Tokens predicted right", bars, share_scale())


def _likeness(models: Models, place: int) -> Markup:
    bars = [
        Bar(label, score.mauve or 0.0, f"{score.mauve:.3f}", style)
        for label, score, style in models
    ]
    return bar_chart(f"mauve-{place}", "Likeness of samples", bars, linear_scale([1.0]))


def _ranked(figure: Figure, place: int, report: PrivacyReport) -> Markup:
    name, style = _fitted(report)
    bars = [_share_bar("By chance", Figure(value=0.5), "base"), _share_bar(name, figure, style)]
    return bar_chart(f"ranked-{place}", "Pairs ranked as people did", bars, share_scale())


def _share_bar(label: str, figure: Figure, style: str) -> Bar:
    text = f"{figure.value:.1%}{_noise(figure, '.1%')}"
    return Bar(label, figure.value, text, style, _MARGIN * figure.std)


def _noise(figure: Figure, form: str) -> str:
    return f" ±{NBSP}{_MARGIN * figure.std:{form}}" if figure.std else ""


def _basis(release: Release, report: PrivacyReport) -> str:
    if release.basis == "public":
        return f"Exact, on {release.n_units:,} records that were declared public."
    assert release.epsilon is not None
    assert release.delta is not None
    total = "; it is part of the total above" if report.epsilon is not None else ""
    return (
        f"On {release.n_units:,} private units, with noise (± holds 95% of it). The release cost "
        f"ε{NBSP}={NBSP}{release.epsilon:.4g} at "
        f"δ{NBSP}={NBSP}{scientific(math.log10(release.delta))} "
        f"by itself{total}."
    )
