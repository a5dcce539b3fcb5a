"""Seal of what notifications need in the clear later: receivers' URLs and secrets, codes."""

from __future__ import annotations

import base64
import hmac

from cryptography.fernet import Fernet

from taciturn.server.context import Gateway


def sealed(gateway: Gateway, text: str) -> str:
    """Return a text that a copy of the database alone does not tell."""
    return _cipher(gateway).encrypt(text.encode()).decode()


def unsealed(gateway: Gateway, text: str) -> str:
    """Return what was sealed."""
    return _cipher(gateway).decrypt(text.encode()).decode()


def code_digest(gateway: Gateway, user_id: str, code: str) -> str:
    """Return what is kept of a code that was sent to a person."""
    text = f"taciturn: codes\0{user_id}\0{code}"
    return hmac.digest(gateway.seal_key.secret, text.encode(), "sha256").hex()


def _cipher(gateway: Gateway) -> Fernet:
    derived = hmac.digest(gateway.seal_key.to_text().encode(), b"taciturn: notifications", "sha256")
    return Fernet(base64.urlsafe_b64encode(derived))
