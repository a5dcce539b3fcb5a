"""Messages to and from a process that tries selections: four bytes of length, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

LIMIT_S = 5.0
"""Wall time of a trial."""

MESSAGE_LIMIT_BYTES = 8 << 20
"""A preview is at most 200 rows: what is larger is no preview."""


def to_message(value: Any) -> bytes:
    """Message as `read_message` reads it."""
    body = json.dumps(value).encode()
    return len(body).to_bytes(4, "big") + body


def read_message(read: Callable[[int], bytes]) -> bytes:
    """The body of the next message; raises EOFError at the end, ValueError if it is too large."""
    size = int.from_bytes(_exactly(read, 4), "big")
    if size > 2 * MESSAGE_LIMIT_BYTES:
        raise ValueError(f"a message of {size} bytes")
    return _exactly(read, size)


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts, bytes_left = [], size
    while bytes_left:
        part = read(bytes_left)
        if not part:
            raise EOFError
        parts.append(part)
        bytes_left -= len(part)
    return b"".join(parts)
