"""Lines and histograms over two axes, with a legend where there is more than one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from taciturn.reports.html.image import image
from taciturn.reports.html.scales import AxisScale

_LEFT, _WIDTH = 12.0, 85.0  # percent
_TOP_PX, _PLOT_PX, _BOTTOM_PX = 30, 210, 44
_HEIGHT_PX = _TOP_PX + _PLOT_PX + _BOTTOM_PX


@dataclass(frozen=True)
class Axes:
    """Both scales, and what they measure."""

    x: AxisScale
    y: AxisScale
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Line:
    """A line through `points`, in the units of the axes; `style` is its CSS class."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Series:
    """One count for each bin of a histogram."""

    label: str
    counts: Sequence[int]
    style: str


def line_chart(
    name: str, described: str, lines: Sequence[Line], axes: Axes, *, end: str | None = None
) -> Markup:
    """The lines, the last one on top; `end` names the last point of a single rising one."""
    curves = Markup("").join(_polyline(line, axes) for line in lines)
    last = Markup("") if end is None else _end(lines[-1].points[-1], end, axes)
    chart = image(name, described, _HEIGHT_PX, _grid(axes) + _area(curves) + last)
    return chart + _legend([(line.label, f"line {line.style}") for line in lines[::-1]])


def histogram(
    name: str, described: str, edges: Sequence[float], series: Sequence[Series], axes: Axes
) -> Markup:
    """Counts per bin, one bar beside the other for each series."""
    bars = Markup("").join(
        _column(edges[i], edges[i + 1], (place, len(series)), one.counts[i], one.style, axes)
        for place, one in enumerate(series)
        for i in range(len(edges) - 1)
        if one.counts[i]
    )
    chart = image(name, described, _HEIGHT_PX, _grid(axes) + _area(bars))
    return chart + _legend([(one.label, one.style) for one in series])


def _area(content: Markup) -> Markup:
    """Area where data are drawn, in percent of both axes."""
    return Markup(
        '<svg x="{left}%" y="{top}" width="{width}%" height="{height}" viewBox="0 0 100 100"'
        ' preserveAspectRatio="none" overflow="visible">{content}</svg>'
    ).format(left=_LEFT, top=_TOP_PX, width=_WIDTH, height=_PLOT_PX, content=content)


def _polyline(line: Line, axes: Axes) -> Markup:
    path = " ".join(
        f"{100 * axes.x.place(x):.2f},{100 * (1 - axes.y.place(y)):.2f}" for x, y in line.points
    )
    return Markup(
        '<polyline class="line {style}" points="{path}" vector-effect="non-scaling-stroke" />'
    ).format(style=line.style, path=path)


def _column(
    low: float, high: float, slot: tuple[int, int], count: int, style: str, axes: Axes
) -> Markup:
    left, right = (100 * axes.x.place(edge) for edge in (low, high))
    place, slots = slot
    width, height = (right - left) / slots, 100 * axes.y.place(count)
    return Markup(
        '<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" class="{style}" />'
    ).format(x=left + place * width, y=100 - height, width=width * 0.9, height=height, style=style)


def _grid(axes: Axes) -> Markup:
    bottom = _TOP_PX + _PLOT_PX
    rows = [_row(bottom - _PLOT_PX * axes.y.place(value), text) for value, text in axes.y.ticks]
    columns = [
        _text(_LEFT + _WIDTH * axes.x.place(value), bottom + 18, "middle", text)
        for value, text in axes.x.ticks
    ]
    names = [
        _text(_LEFT + _WIDTH, bottom + 38, "end", f"{axes.x_label} →"),
        _text(0, 13, "start", f"↑ {axes.y_label}"),
    ]
    return Markup("").join([*rows, *columns, *names])


def _row(y: float, text: str) -> Markup:
    return Markup(
        '<line x1="{left}%" x2="{right}%" y1="{y:.1f}" y2="{y:.1f}" class="grid" />'
    ).format(left=_LEFT, right=_LEFT + _WIDTH, y=y) + _text(_LEFT - 1.5, y + 4, "end", text)


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup(
        '<text x="{x:.2f}%" y="{y:.1f}" class="axis" text-anchor="{anchor}">{text}</text>'
    ).format(x=x, y=y, anchor=anchor, text=text)


def _end(point: tuple[float, float], text: str, axes: Axes) -> Markup:
    return Markup(
        '<circle cx="{x:.2f}%" cy="{y:.1f}" r="5" class="dot" />'
        '<text x="{right}%" y="{text_y}" class="value" text-anchor="end">{text}</text>'
    ).format(
        x=_LEFT + _WIDTH * axes.x.place(point[0]),
        y=_TOP_PX + _PLOT_PX * (1 - axes.y.place(point[1])),
        # Spending is concave over steps: under its right end there is always room.
        right=_LEFT + _WIDTH,
        text_y=_TOP_PX + _PLOT_PX - 14,
        text=text,
    )


def _legend(entries: Sequence[tuple[str, str]]) -> Markup:
    if len(entries) < 2:
        return Markup("")
    items = Markup("").join(
        Markup('<li><span class="swatch {style}"></span>{label}</li>').format(
            style=style, label=label
        )
        for label, style in entries
    )
    return Markup('<ul class="legend">{items}</ul>').format(items=items)
