"""Amounts of a resource: `500m`, `2Gi`, `1`."""

from __future__ import annotations

import re

_UNITS = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|[MGT]|[KMGT]i)?$")


def amount(text: str) -> float:
    """The number that a quantity is. ValueError: it is none."""
    found = _QUANTITY.match(str(text))
    if not found:
        raise ValueError(
            f"quantities must match the regular expression '{_QUANTITY.pattern}': {text!r}"
        )
    return float(found[1]) * _UNITS[found[2] or ""]
