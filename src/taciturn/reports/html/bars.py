"""Horizontal bars, each under its label and its value in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from taciturn.reports.html.image import anchor, image
from taciturn.reports.html.scales import AxisScale

_ROW_PX, _AXIS_PX = 56, 26


@dataclass(frozen=True)
class Bar:
    """One bar: `style` is the CSS class that colours it, `margin` how far a whisker reaches."""

    label: str
    value: float
    text: str
    style: str
    margin: float = 0.0


def bar_chart(name: str, title: str, bars: Sequence[Bar], scale: AxisScale) -> Markup:
    """The bars, one below the other, and the scale under them."""
    bottom = len(bars) * _ROW_PX
    rows = Markup("").join(_bar(bar, scale, number * _ROW_PX) for number, bar in enumerate(bars))
    grid = Markup("").join(_tick(scale, tick, bottom) for tick in scale.ticks)
    described = f"{title}: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars) + "."
    return image(name, described, bottom + _AXIS_PX, grid + rows)


def _bar(bar: Bar, scale: AxisScale, top: int) -> Markup:
    markup = Markup(
        '<text x="0" y="{text_y}" class="label">{label}</text>'
        '<text x="100%" y="{text_y}" class="value" text-anchor="end">{text}</text>'
        '<rect x="0" y="{y}" width="100%" height="18" rx="3" class="track" />'
        '<rect x="0" y="{y}" width="{width:.2f}%" height="18" rx="3" class="{style}" />'
    ).format(
        text_y=top + 18,
        y=top + 27,
        label=bar.label,
        text=bar.text,
        width=max(0.4, 100 * scale.place(bar.value)),
        style=bar.style,
    )
    return markup + _whisker(bar, scale, top + 36) if bar.margin > 0 else markup


def _whisker(bar: Bar, scale: AxisScale, y: int) -> Markup:
    low, high = (100 * scale.place(bar.value + sign * bar.margin) for sign in (-1, 1))
    return Markup(
        '<line x1="{low:.2f}%" x2="{high:.2f}%" y1="{y}" y2="{y}" class="whisker" />'
        '<line x1="{low:.2f}%" x2="{low:.2f}%" y1="{y1}" y2="{y2}" class="whisker" />'
        '<line x1="{high:.2f}%" x2="{high:.2f}%" y1="{y1}" y2="{y2}" class="whisker" />'
    ).format(low=low, high=high, y=y, y1=y - 5, y2=y + 5)


def _tick(scale: AxisScale, tick: tuple[float, str], bottom: int) -> Markup:
    place = 100 * scale.place(tick[0])
    return Markup(
        '<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{y1}" y2="{y2}" class="tick" />'
        '<text x="{x:.2f}%" y="{text_y}" class="axis" text-anchor="{anchor}">{label}</text>'
    ).format(
        x=place,
        y1=bottom - 4,
        y2=bottom + 4,
        text_y=bottom + 20,
        anchor=anchor(place),
        label=tick[1],
    )
