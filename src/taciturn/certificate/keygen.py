"""New signing keys: the private half, the public half, and an entry for trust stores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taciturn.certificate.keys import TrustedKey, TrustStore, public_pem
from taciturn.errors import OutputError, SpecError

MAX_DAYS = 3650


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Files of a new key, and its id."""

    private: Path
    public: Path
    trust: Path
    keyid: str


@dataclass(frozen=True, slots=True, repr=False)
class NewKey:
    """A key in the forms in which it is kept: PEM, PEM, and an entry for trust stores."""

    private: bytes
    public: bytes
    trust: bytes
    keyid: str


def new_key(*, name: str, valid_from: datetime, days: int, password: str | None) -> NewKey:
    """Make an Ed25519 key; raises SpecError if `days` is outside [1, 3650]."""
    if not 1 <= days <= MAX_DAYS:
        raise SpecError(f"days={days} must lie in [1, {MAX_DAYS}]; choose for example 730")
    key = Ed25519PrivateKey.generate()
    until = valid_from + timedelta(days=days)
    trusted = TrustedKey(key.public_key(), name, valid_from, until)
    return NewKey(
        _private_pem(key, password),
        public_pem(key.public_key()),
        TrustStore((trusted,)).to_bytes(),
        trusted.keyid,
    )


def write_key(
    prefix: Path, *, name: str, valid_from: datetime, days: int, password: str | None
) -> KeyFiles:
    """Make an Ed25519 key: PREFIX.pem (secret, mode 0600), PREFIX.pub and PREFIX.trust.json.

    Raises:
        SpecError: `days` is outside [1, 3650].
        OutputError: one of the files exists, or cannot be written; none is left then.
    """
    new = new_key(name=name, valid_from=valid_from, days=days, password=password)
    private, public, trust = (
        prefix.with_name(prefix.name + ending) for ending in (".pem", ".pub", ".trust.json")
    )
    _write_new({private: new.private, public: new.public, trust: new.trust})
    return KeyFiles(private, public, trust, new.keyid)


def _private_pem(key: Ed25519PrivateKey, password: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _write_new(contents: dict[Path, bytes]) -> None:
    paths: list[Path] = []
    try:
        for path, data in contents.items():
            mode = 0o600 if path.suffix == ".pem" else 0o644
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            paths.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        raise OutputError(
            f"key files {next(iter(contents))} ... cannot be written ({error.strerror}); "
            "choose another --output; nothing was left behind"
        ) from None
