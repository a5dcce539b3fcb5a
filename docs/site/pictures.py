"""Tables and pictures of the documentation that are computed when the site is built (a hook).

A page asks for a table by a comment, `<!-- table: odds -->`; pictures are files of their own. So no
figure in them is written by hand.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from taciturn.accounting.tradeoff import tradeoff
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import make_plan
from taciturn.planning.worth import expected_worth
from taciturn.spec import FitSpec

_EPSILONS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
_UNITS = (300, 1_000, 3_000, 10_000, 30_000)
_ODDS_UNITS = 1200
_TINY = ("taciturn/tiny-medical", 4_737_280, 512)
_TABLE = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)
_INK, _ACCENT, _SOFT, _BAD = "#1a1e22", "#0b6f67", "#9fd3cc", "#a3260f"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures."""
    for name, make in PICTURES.items():
        files.append(File.generated(config, f"understand/{name}", content=make()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables where a page asks for them."""
    return _TABLE.sub(lambda match: TABLES[match[1]](), markdown)


@functools.cache
def _bounds(epsilon: float) -> tuple[float, float]:
    """Return how often an attacker is right at most, and whom they find at 1% false alarms."""
    facts = PublicFacts(_ODDS_UNITS, *_TINY)
    plan = make_plan(FitSpec(target_epsilon=epsilon, delta=1e-5), facts)
    assert plan.privacy is not None
    step = PoissonSampledDpEvent(
        plan.sampling_probability, GaussianDpEvent(plan.privacy.noise_multiplier)
    )
    bound = tradeoff(SelfComposedDpEvent(step, plan.steps))
    return (1 + bound.advantage) / 2, bound.true_positive_rate(0.01)


def odds() -> str:
    """Return the table of an attacker's odds."""
    lines = [
        "| epsilon | right at most | found at most, at 1% wrongly accused |",
        "|---|---|---|",
        "| none: no data were used | 50% | 1% |",
    ]
    for epsilon in _EPSILONS:
        right, found = _bounds(epsilon)
        lines.append(f"| {epsilon:g} | {100 * right:.0f}% | {100 * found:.0f}% |")
    return "\n".join([*lines, "| no privacy | 100% | 100% |"])


def worth() -> str:
    """Return the table of what a private fit is expected to keep."""
    lines = ["| units | epsilon 1 | epsilon 3 | epsilon 8 |", "|---|---|---|---|"]
    for n_units in _UNITS:
        cells = [_expected(n_units, epsilon) for epsilon in (1.0, 3.0, 8.0)]
        lines.append(f"| {n_units:,} | {' | '.join(cells)} |")
    note = (
        "Expected share of what an ordinary fit of `taciturn/tiny-medical` learns, with the "
        "default plan. Only a few of these plans were measured; the others follow from the curve "
        "through them, whose error `taciturn plan` states."
    )
    return "\n".join([*lines, "", note])


def _expected(n_units: int, epsilon: float) -> str:
    plan = make_plan(FitSpec(target_epsilon=epsilon), PublicFacts(n_units, *_TINY))
    assert plan.privacy is not None
    share = expected_worth(
        remaining_noise=plan.privacy.noise_multiplier / (plan.batch_size * plan.steps**0.5),
        n_units=n_units,
        epsilon=epsilon,
        delta=plan.privacy.delta,
        parameters=_TINY[1],
        method="auto",
    )
    if share.low is None or share.high is None:
        return "not known"
    return f"{100 * share.low:.0f}% to {100 * share.high:.0f}%"


def odds_picture() -> str:
    """Return bars: how often an attacker is right at most, by epsilon."""
    rows = [("no data", 0.5), *((f"epsilon {e:g}", _bounds(e)[0]) for e in _EPSILONS)]
    rows.append(("no privacy", 1.0))
    parts = []
    for number, (label, right) in enumerate(rows):
        y, width = 14 + 30 * number, 440 * (right - 0.5) / 0.5
        colour = _BAD if right == 1 else _ACCENT
        parts.append(_text(118, y + 15, label, anchor="end"))
        bar = f'x="130" y="{y}" width="{max(2, width):.0f}" height="20"'
        parts.append(f'<rect {bar} rx="3" fill="{colour}"/>')
        parts.append(_text(138 + max(2, width), y + 15, f"{100 * right:.0f}%"))
    title = "How often an attacker who must tell whether a person was in the data is right at most"
    return _svg(640, 26 + 30 * len(rows), title, parts)


def worlds_picture() -> str:
    """Return the two worlds: the same data with and without one person."""
    parts = []
    for top, label, person in ((16, "with François Dupont", True), (136, "without him", False)):
        parts.append(_text(20, top + 14, label))
        for column in range(8):
            here = column == 3
            style = f'fill="{_BAD if here else _SOFT}"'
            if here and not person:
                style = f'fill="none" stroke="{_BAD}" stroke-dasharray="4 3"'
            parts.append(f'<circle cx="{36 + 26 * column}" cy="{top + 48}" r="10" {style}/>')
        parts.append(_arrow(252, top + 48, 310))
        box = f'x="318" y="{top + 24}" width="120" height="48"'
        parts.append(f'<rect {box} rx="8" fill="{_ACCENT}"/>')
        parts.append(_text(378, top + 53, "fit with noise", anchor="middle", fill="#ffffff"))
        parts.append(_arrow(442, top + 48, 500))
        parts.append(_text(510, top + 53, "a model"))
    parts.append(_text(590, 124, "which world?", anchor="middle", fill=_BAD))
    parts.append(_arrow(560, 88, 585, 108))
    parts.append(_arrow(560, 160, 585, 134))
    return _svg(
        660, 236, "Two worlds, with and without one person; a fit in each gives a model", parts
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = _INK) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{fill}">{text}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float | None = None) -> str:
    end = y if to_y is None else to_y
    line = f'x1="{x}" y1="{y}" x2="{to_x}" y2="{end}"'
    return f'<line {line} stroke="{_INK}" stroke-width="1.5" marker-end="url(#tip)"/>'


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{_INK}"/></marker>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="14">'
        f"<title>{title}</title><defs>{tip}</defs>"
        f'<rect width="{width}" height="{height}" rx="10" fill="#f7f6f2"/>'
    )
    return head + "".join(parts) + "</svg>\n"


TABLES = {"odds": odds, "worth": worth}
PICTURES = {"odds.svg": odds_picture, "worlds.svg": worlds_picture}
