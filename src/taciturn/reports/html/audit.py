"""Charts of an audit: the bound beside the promise, and the scores of its canaries."""

from __future__ import annotations

from markupsafe import Markup

from taciturn.reports.html.bars import Bar, bar_chart
from taciturn.reports.html.plots import Axes, Series, histogram
from taciturn.reports.html.scales import linear_scale, span_scale
from taciturn.reports.privacy import Audit, ScoreHistogram


def bound_chart(audit: Audit, promised_epsilon: float | None) -> Markup:
    """Epsilon as it was found to be at least, beside what is promised at most."""
    lower_bound = audit.epsilon_lower_bound
    bars = [Bar("Found: at least", lower_bound, f"{lower_bound:.3g}", "non_private")]
    if promised_epsilon is not None:
        bars.append(
            Bar("Promised: at most", promised_epsilon, f"{promised_epsilon:.4g}", "private")
        )
    scale = linear_scale([*(bar.value for bar in bars), 1e-2])
    return bar_chart("audit-bound", "Epsilon", bars, scale)


def scores_chart(scores: ScoreHistogram) -> Markup:
    """A histogram: the further the two lie apart, the more the model tells."""
    series = (
        Series(f"{sum(scores.included)} in the data", scores.included, "private"),
        Series(f"{sum(scores.excluded)} not in the data", scores.excluded, "base"),
    )
    axes = Axes(
        span_scale(scores.edges[0], scores.edges[-1]),
        linear_scale([float(max(*scores.included, *scores.excluded, 1))]),
        "share of its loss that the fit took away",
        "canaries",
    )
    described = (
        f"Scores of canaries: {series[0].label}, half of them above {_median(scores, True):.3g}; "
        f"{series[1].label}, half of them above {_median(scores, False):.3g}."
    )
    return histogram("canary-scores", described, scores.edges, series, axes)


def _median(scores: ScoreHistogram, included: bool) -> float:
    """The lower edge of the bin in which the median lies."""
    counts = scores.included if included else scores.excluded
    total = 0
    for edge, count in zip(scores.edges, counts, strict=False):
        total += count
        if 2 * total >= sum(counts):
            return edge
    return scores.edges[-1]
