"""Side of a split that a unit is on."""

from __future__ import annotations

import hashlib
import hmac

_HASHES = 2**64


def is_test(key: bytes, unit: str, test_share: float) -> bool:
    """True if a unit is on the test side: HMAC-SHA256 of its name is below that share of all."""
    digest = hmac.digest(key, unit.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8]) < test_share * _HASHES
