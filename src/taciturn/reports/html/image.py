"""The frame of every chart: inline SVG that follows the page's width and colours.

Positions are percentages and text has a fixed size, so that labels stay readable on a phone.
Colours come from the page's CSS classes. Each chart is one image with a text alternative.
"""

from __future__ import annotations

from markupsafe import Markup


def image(name: str, described: str, height: int, content: Markup) -> Markup:
    """A chart of `height` pixels; `described` is read to those who don't see it."""
    return Markup(
        '<svg class="chart" role="img" aria-labelledby="{name}-title" width="100%"'
        ' height="{height}"><title id="{name}-title">{described}</title>{content}</svg>'
    ).format(name=name, height=height, described=described, content=content)


def anchor(place: float) -> str:
    """Alignment of a tick's label at `place` percent, so that it stays inside the picture."""
    return "start" if place < 4 else "end" if place > 96 else "middle"
