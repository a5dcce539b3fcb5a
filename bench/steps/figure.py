"""The figure: bars of time and memory against the plain loop, as SVG without a drawing library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from steps.registry import GHOST, HOOKS, LABELS, ORDINARY, PLAIN, PRIVATE, TRAINER
from steps.results import Results

_SHOWN = (TRAINER, ORDINARY, PRIVATE, HOOKS, GHOST)
_COLOURS = {
    TRAINER: "#9aa5b1",
    ORDINARY: "#7fb3a5",
    PRIVATE: "#0b6e4f",
    HOOKS: "#e0a458",
    GHOST: "#b5523b",
}
_WIDTH, _PANEL, _LEFT, _TOP = 860, 230, 56, 48
_PLOT = 150


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: groups of bars, each bar a ratio, None where there is none."""

    title: str
    groups: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def top(self) -> float:
        """Upper end of the axis: the next half above the largest value."""
        found = [value for group in self.values for value in group if value is not None]
        return max(1.5, math.ceil(max(found, default=1.0) * 2) / 2)


def svg(results: Results) -> str:
    """Time and memory ratios of LoRA and full fine-tuning, one panel each."""
    drawn = [panel for panel in _panels(results) if panel.groups]
    height = _TOP + _PANEL * len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape('Training steps against a plain loop')}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        *_legend(),
    ]
    for number, panel in enumerate(drawn):
        parts += [f'<g transform="translate(0 {_TOP + _PANEL * number})">', *_draw(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panels(results: Results) -> Iterator[Panel]:
    for method, said in (("lora", "LoRA"), ("full", "full fine-tuning")):
        yield _panel(results, method, f"{said}: time / plain loop", memory=False)
        yield _panel(results, method, f"{said}: peak memory / plain loop", memory=True)


def _panel(results: Results, method: str, title: str, *, memory: bool) -> Panel:
    cells = {
        row.cell: row.tokens for row in results.steps if row.method == method and row.unit_size == 1
    }
    values = [tuple(_value(results, cell, name, memory) for name in _SHOWN) for cell in cells]
    return Panel(title, tuple(f"T={tokens}" for tokens in cells.values()), tuple(values))


def _value(results: Results, cell: str, name: str, memory: bool) -> float | None:
    row, plain = results.row(cell, name), results.row(cell, PLAIN)
    if row is None or plain is None:
        return None
    if not memory:
        return row.ratio.median if row.ratio else None
    return row.peak_bytes / plain.peak_bytes if row.peak_bytes and plain.peak_bytes else None


def _legend() -> Iterator[str]:
    for number, name in enumerate(_SHOWN):
        x = _LEFT + number * 155
        yield f'<rect x="{x}" y="16" width="12" height="12" fill="{_COLOURS[name]}"/>'
        yield f'<text x="{x + 18}" y="26">{escape(LABELS[name])}</text>'


def _draw(panel: Panel) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="14" font-weight="bold">{escape(panel.title)}</text>'
    for step in range(int(panel.top * 2) + 1):
        yield from _tick(step / 2, panel.top)
    width = (_WIDTH - _LEFT - 16) / max(1, len(panel.groups))
    for number, (label, values) in enumerate(zip(panel.groups, panel.values, strict=True)):
        left = _LEFT + number * width
        yield f'<text x="{left + width / 2:.1f}" y="{_y(0, 1) + 18:.1f}" text-anchor="middle">'
        yield f"{escape(label)}</text>"
        yield from _bars(values, left, width, panel.top)


def _tick(value: float, top: float) -> Iterator[str]:
    y = _y(value, top)
    stroke = 'stroke="#333" stroke-dasharray="4 3"' if value == 1 else 'stroke="#ddd"'
    yield f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{y:.1f}" y2="{y:.1f}" {stroke}/>'
    if value == int(value) or top <= 3:
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}x</text>'


def _bars(values: Sequence[float | None], left: float, width: float, top: float) -> Iterator[str]:
    bar = width * 0.8 / len(values)
    for number, (name, value) in enumerate(zip(_SHOWN, values, strict=True)):
        x = left + width * 0.1 + number * bar
        middle = f'x="{x + bar / 2:.1f}" text-anchor="middle" font-size="10"'
        if value is None:
            yield f'<text {middle} y="{_y(0, top) - 4:.1f}">fails</text>'
            continue
        y = _y(value, top)
        yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar * 0.9:.1f}" '
        yield f'height="{_y(0, top) - y:.1f}" fill="{_COLOURS[name]}"/>'
        yield f'<text {middle} y="{y - 3:.1f}">{value:.2f}</text>'


def _y(value: float, top: float) -> float:
    return 26 + _PLOT * (1 - value / top)
