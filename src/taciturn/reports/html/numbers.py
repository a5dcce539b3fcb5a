"""Numbers as people read them."""

from __future__ import annotations

import math

NBSP = "\u00a0"
"""Keeps a number and what belongs to it on one line."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Number such as "251" or "3.27"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def optional(value: float | None) -> str:
    """Four digits, or "none"."""
    return "none" if value is None else f"{value:.4g}"


def percent(share: float) -> str:
    """Percentage such as "17%"; near 1 with two more digits."""
    return f"{share:.0%}" if share < 0.995 else f"{share:.2%}"


def at_most(share: float) -> str:
    """A percentage of three digits that is not below `share`: "4.66%" of 0.04651."""
    if share <= 0:
        return "0%"
    digits = max(0, 2 - math.floor(math.log10(100 * share)))
    scale = 10**digits
    # What floats add to a number of few digits must not lift it to the next one.
    text = f"{min(math.ceil(100 * share * scale - 1e-9) / scale, 100.0):.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def superscript(power: int) -> str:
    """Ten to the `power`: "10⁻⁵"."""
    return f"10{str(power).translate(_SUPERSCRIPT)}"


def scientific(log10: float) -> str:
    """Ten to the power of `log10`: "1.5 × 10⁻¹³", or "10⁻⁵" where the factor is 1."""
    exponent = math.floor(log10 + 1e-9)
    factor = f"{10 ** (log10 - exponent):.1f}".removesuffix(".0")
    return superscript(exponent) if factor == "1" else f"{factor} × {superscript(exponent)}"


def probability(log10: float) -> str:
    """Probability such as "87%", "0.13%" or "1.5 × 10⁻¹³"."""
    return f"{100 * 10**log10:.2g}%" if log10 > -3 else scientific(log10)
