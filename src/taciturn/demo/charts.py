"""Charts as inline SVG that follows the page's width and colours.

Positions are percentages and text has a fixed size, so that labels stay readable on a phone.
Colours come from the page's CSS classes. Each chart is one image with a text alternative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_ROW_PX = 56
_AXIS_PX = 26
_CURVE_PX = 260
_CURVE_LEFT, _CURVE_WIDTH = 9.0, 88.0
_CURVE_TOP_PX, _CURVE_BOTTOM_PX = 12, 44
_MOST_TICKS = 6


@dataclass(frozen=True)
class Bar:
    """One bar: `style` is the CSS class that colours it."""

    label: str
    value: float
    text: str
    style: str


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [0, 1], in logarithms where `logarithmic`."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where `value` lies between low and high, kept within [0, 1]."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def log10_scale(log10_values: Sequence[float]) -> Scale:
    """For log10 of probabilities: from a power of ten below the least of them up to 1."""
    lowest = math.floor(min(log10_values)) - 1
    step = max(1, math.ceil(-lowest / (_MOST_TICKS - 1)))
    ticks = tuple((float(power), _power_of_ten(power)) for power in range(0, lowest - 1, -step))
    return Scale(float(lowest), 0.0, ticks[::-1])


def linear_scale(values: Sequence[float]) -> Scale:
    """From 0 to just above the largest value, with ticks at round numbers."""
    step = _round_step(max(values) / (_MOST_TICKS - 1))
    count = math.ceil(max(values) / step)
    ticks = tuple((step * number, f"{step * number:g}") for number in range(count + 1))
    return Scale(0.0, step * count, ticks)


def bar_chart(name: str, title: str, bars: Sequence[Bar], scale: Scale) -> Markup:
    """Horizontal bars, each under its label and its value in words."""
    height = len(bars) * _ROW_PX + _AXIS_PX
    rows = Markup("").join(_bar(bar, scale, number * _ROW_PX) for number, bar in enumerate(bars))
    grid = Markup("").join(_bar_tick(scale, tick, len(bars) * _ROW_PX) for tick in scale.ticks)
    described = f"{title}: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars) + "."
    return _image(name, described, height, grid + rows)


def curve_chart(
    name: str,
    title: str,
    points: Sequence[tuple[float, float]],
    axes: tuple[str, str],
) -> Markup:
    """A line through `points` with its last point named; `axes` labels x and y."""
    x_scale = linear_scale([x for x, _ in points])
    y_scale = linear_scale([y for _, y in points])
    path = " ".join(
        f"{100 * x_scale.place(x):.2f},{100 * (1 - y_scale.place(y)):.2f}" for x, y in points
    )
    plot_px = _CURVE_PX - _CURVE_TOP_PX - _CURVE_BOTTOM_PX
    plot = Markup(
        '<svg x="{left}%" y="{top}" width="{width}%" height="{height}" viewBox="0 0 100 100"'
        ' preserveAspectRatio="none" overflow="visible">'
        '<polyline class="line" points="{path}" vector-effect="non-scaling-stroke" /></svg>'
    ).format(left=_CURVE_LEFT, top=_CURVE_TOP_PX, width=_CURVE_WIDTH, height=plot_px, path=path)
    grid = _curve_grid(x_scale, y_scale, plot_px, axes)
    described = f"{title}: {points[0][1]:.3g} after step {points[0][0]:g}"
    described += f", {points[-1][1]:.3g} after step {points[-1][0]:g}."
    end = _curve_end(points[-1], x_scale, y_scale, plot_px)
    return _image(name, described, _CURVE_PX, grid + plot + end)


def _image(name: str, described: str, height: int, content: Markup) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-labelledby="{name}-title" width="100%"'
        ' height="{height}"><title id="{name}-title">{described}</title>{content}</svg>'
    ).format(name=name, height=height, described=described, content=content)


def _bar(bar: Bar, scale: Scale, top: int) -> Markup:
    return Markup(
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


def _bar_tick(scale: Scale, tick: tuple[float, str], bottom: int) -> Markup:
    place = 100 * scale.place(tick[0])
    return Markup(
        '<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{y1}" y2="{y2}" class="tick" />'
        '<text x="{x:.2f}%" y="{text_y}" class="axis" text-anchor="{anchor}">{label}</text>'
    ).format(
        x=place,
        y1=bottom - 4,
        y2=bottom + 4,
        text_y=bottom + 20,
        anchor=_anchor(place),
        label=tick[1],
    )


def _curve_grid(x_scale: Scale, y_scale: Scale, plot_px: int, axes: tuple[str, str]) -> Markup:
    bottom = _CURVE_TOP_PX + plot_px
    lines = []
    for value, label in y_scale.ticks:
        y = bottom - plot_px * y_scale.place(value)
        lines.append(
            Markup(
                '<line x1="{left}%" x2="{right}%" y1="{y:.1f}" y2="{y:.1f}" class="grid" />'
                '<text x="{text_x}%" y="{text_y:.1f}" class="axis" text-anchor="end">{label}</text>'
            ).format(
                left=_CURVE_LEFT,
                right=_CURVE_LEFT + _CURVE_WIDTH,
                y=y,
                text_x=_CURVE_LEFT - 1.5,
                text_y=y + 4,
                label=label,
            )
        )
    for value, label in x_scale.ticks:
        x = _CURVE_LEFT + _CURVE_WIDTH * x_scale.place(value)
        lines.append(
            Markup(
                '<text x="{x:.2f}%" y="{y}" class="axis" text-anchor="{anchor}">{label}</text>'
            ).format(x=x, y=bottom + 18, anchor="middle", label=label)
        )
    lines.append(
        Markup('<text x="{x}%" y="{y}" class="axis" text-anchor="end">{text}</text>').format(
            x=_CURVE_LEFT + _CURVE_WIDTH, y=bottom + 38, text=f"{axes[0]} →"
        )
    )
    return Markup("").join(lines)


def _curve_end(point: tuple[float, float], x: Scale, y: Scale, plot_px: int) -> Markup:
    return Markup(
        '<circle cx="{x:.2f}%" cy="{y:.1f}" r="5" class="dot" />'
        '<text x="{right}%" y="{text_y}" class="value" text-anchor="end">{text}</text>'
    ).format(
        x=_CURVE_LEFT + _CURVE_WIDTH * x.place(point[0]),
        y=_CURVE_TOP_PX + plot_px * (1 - y.place(point[1])),
        # An epsilon curve is concave: under its right end there is always room.
        right=_CURVE_LEFT + _CURVE_WIDTH,
        text_y=_CURVE_TOP_PX + plot_px - 14,
        text=f"ε = {point[1]:.3g} after {point[0]:g} steps",
    )


def _anchor(place: float) -> str:
    return "start" if place < 4 else "end" if place > 96 else "middle"


def _round_step(raw: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))


def _power_of_ten(power: int) -> str:
    superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "1" if power == 0 else f"10{superscript}"
