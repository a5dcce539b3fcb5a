"""What an audit found: the bound beside the promise, and the scores of its canaries."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from taciturn.page.bars import Bar, bar_chart
from taciturn.page.plots import Axes, Series, histogram
from taciturn.page.scales import linear_scale, span_scale
from taciturn.report import Audit


@dataclass(frozen=True)
class CanaryScores:
    """How many canaries have which score, those that were in the data and those that were not.

    Attributes:
        edges: of the bins, ascending; one more than there are counts.
        included: per bin.
        excluded: per bin.
    """

    edges: tuple[float, ...]
    included: tuple[int, ...]
    excluded: tuple[int, ...]


@dataclass(frozen=True)
class AuditFigures:
    """A one-run audit, as far as a page shows it.

    Attributes:
        lower_bound: with `confidence`, epsilon is not below it.
        gaussian_lower_bound: the same if the trade-off curve has a Gaussian's shape.
        confidence: in (0, 1).
        threat_model: what the attacker sees.
        method: name and source of the attack.
        canaries: how many there were.
        guesses: how many guesses were made about them.
        correct: how many were right.
        scores: of the canaries.
    """

    lower_bound: float
    confidence: float
    threat_model: str
    method: str
    canaries: int
    guesses: int
    correct: int
    gaussian_lower_bound: float | None = None
    scores: CanaryScores | None = None

    @classmethod
    def of(cls, audit: Audit) -> AuditFigures:
        """What a page shows of an audit."""
        drawn = audit.histogram
        return cls(
            lower_bound=audit.epsilon_lower_bound,
            confidence=audit.confidence,
            threat_model=audit.threat_model,
            method=audit.method,
            canaries=audit.canaries,
            guesses=audit.guesses,
            correct=audit.correct,
            gaussian_lower_bound=audit.gaussian_epsilon_lower_bound,
            scores=CanaryScores(drawn.edges, drawn.included, drawn.excluded),
        )


def bound_chart(audit: AuditFigures, promised: float | None) -> Markup:
    """Epsilon as it was found to be at least, beside what is promised at most."""
    bars = [
        Bar("Found: at least", audit.lower_bound, f"{audit.lower_bound:.3g}", "non_private"),
    ]
    if promised is not None:
        bars.append(Bar("Promised: at most", promised, f"{promised:.4g}", "private"))
    scale = linear_scale([*(bar.value for bar in bars), 1e-2])
    return bar_chart("audit-bound", "Epsilon", bars, scale)


def scores_chart(scores: CanaryScores) -> Markup:
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


def _median(scores: CanaryScores, included: bool) -> float:
    """The lower edge of the bin in which the median lies."""
    counts = scores.included if included else scores.excluded
    seen = 0
    for edge, count in zip(scores.edges, counts, strict=False):
        seen += count
        if 2 * seen >= sum(counts):
            return edge
    return scores.edges[-1]
