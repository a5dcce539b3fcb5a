"""One value, one text: a certificate is refused unless it is byte for byte what we would write.

A signature covers the payload only. Whatever surrounds it (whitespace, repeated keys, another
base64 spelling of the same bytes, bytes after the end) would be a second file that says the same,
so every layer is decoded, encoded again and compared.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from taciturn.errors import CertificateError


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON: keys sorted, no spaces, shortest floats, no NaN; no newline at the end."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def parse_canonical(data: bytes, what: str) -> Any:
    """The value whose `canonical_json` is `data`.

    Raises:
        CertificateError: not JSON, cut off, or another spelling of what it says.
    """
    value = parse_json(data, what)
    try:
        again = canonical_json(value)
    except (ValueError, UnicodeEncodeError, RecursionError):
        again = b""
    if again != data:
        raise CertificateError(
            f"{what} is not in canonical form (spaces, repeated keys, order, or bytes that do not "
            "belong there): it was changed after it was signed"
        )
    return value


def parse_json(data: bytes, what: str) -> Any:
    """Any JSON value, no key twice; raises CertificateError."""
    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        open_ended = error.msg.startswith("Unterminated")
        cut = open_ended or error.pos >= len(error.doc.rstrip())
        reason = "it ends too early: is the file truncated?" if cut else f"position {error.pos}"
        raise CertificateError(f"{what} is not JSON ({reason})") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CertificateError(f"{what} is not JSON ({type(error).__name__})") from None


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: object, what: str) -> bytes:
    """The bytes whose `encode_base64` is `text`; raises CertificateError for any other spelling."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data or encode_base64(data) != text:
        raise CertificateError(f"{what} is not canonical base64: it was changed or cut off")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
