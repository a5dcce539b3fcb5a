"""Random identifiers and bearer tokens: what is made, what is kept.

A token is `tac_` + its id + `_` + 256 bits from the operating system. Only SHA-256 of it is kept:
of a secret that cannot be guessed, a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_PREFIX = "tac"


def new_id(kind: str) -> str:
    """A new identifier such as job_4k2... (20 characters of base 36: 103 bits)."""
    value, characters = secrets.randbits(160), []  # so long that no character is likelier
    for _ in range(20):
        value, place = divmod(value, len(_ALPHABET))
        characters.append(_ALPHABET[place])
    return f"{kind}_{''.join(characters)}"


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A token that was just made; `text` is shown once, `digest` is kept."""

    id: str
    text: str = field(repr=False)
    digest: str


def new_secret() -> NewSecret:
    """A new bearer token."""
    token_id = new_id("tok")
    text = f"{_PREFIX}_{token_id.removeprefix('tok_')}_{secrets.token_urlsafe(32)}"
    return NewSecret(token_id, text, digest(text))


def digest(text: str) -> str:
    """Digest of a token, in hexadecimal: all that is kept of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def token_id(text: str) -> str | None:
    """The id that a token says it has; None if it does not look like a token."""
    parts = text.split("_", 2)
    if len(parts) != 3 or parts[0] != _PREFIX or not parts[1].isalnum() or len(parts[1]) != 20:
        return None
    return f"tok_{parts[1]}"


def matches(text: str, kept_digest: str) -> bool:
    """True if a token is the one whose digest was kept; compared in constant time."""
    return hmac.compare_digest(digest(text), kept_digest)
