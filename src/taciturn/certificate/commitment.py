"""Commitment that binds a certificate to its data without telling anything about them.

The commitment is HMAC-SHA256, keyed by a random salt, of the prepared data's fingerprint. Without
the salt it reveals nothing, even to someone who can list all data sets; with it, an owner can show
an auditor which data it was.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path

from taciturn.errors import CertificateError

OPENING = "dataset_opening.json"
"""In the private folder: the salt and the fingerprint that open the commitment."""

_CONTEXT = b"taciturn dataset commitment v1\0"


def commit(fingerprint: str, salt: bytes) -> str:
    """The commitment, in hexadecimal."""
    return hmac.new(salt, _CONTEXT + fingerprint.encode(), hashlib.sha256).hexdigest()


def committed(private: Path, fingerprint: str) -> str:
    """Commit to a data set, keeping the opening in `private`; a second call gives the same."""
    path = private / OPENING
    if not path.exists():
        opening = {"salt": os.urandom(32).hex(), "fingerprint": fingerprint}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(opening, file)
    return open_commitment(private, fingerprint)


def open_commitment(private: Path, fingerprint: str | None = None) -> str:
    """The commitment that the opening in `private` leads to.

    Args:
        fingerprint: of the data at hand; by default the one that was written down.

    Raises:
        CertificateError: there is no opening, or it is damaged.
    """
    path = private / OPENING
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return commit(fingerprint or fields["fingerprint"], bytes.fromhex(fields["salt"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise CertificateError(
            f"{path} does not open a commitment; name the private folder of the fit"
        ) from None
