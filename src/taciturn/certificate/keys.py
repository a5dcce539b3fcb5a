"""Public keys, whom they belong to and when they are valid: a verifier's trust store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from taciturn.certificate.canonical import canonical_json, decode_base64, encode_base64, parse_json
from taciturn.certificate.clock import parse_time, time_text
from taciturn.errors import CertificateError, SigningKeyError

_DER = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
_PEM = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
_RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
_FAR_PAST = datetime(1970, 1, 1, tzinfo=UTC)
_FAR_FUTURE = datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """An Ed25519 public key, its owner's name, and the period in which it may sign."""

    key: Ed25519PublicKey
    name: str
    valid_from: datetime = _FAR_PAST
    valid_until: datetime = _FAR_FUTURE

    @property
    def keyid(self) -> str:
        """SHA-256 of the key's SubjectPublicKeyInfo in DER, in hexadecimal."""
        return keyid(self.key)

    def check_signature(self, signature: bytes, message: bytes) -> None:
        """Raises CertificateError unless `signature` is this key's over `message`."""
        try:
            self.key.verify(signature, message)
        except InvalidSignature:
            raise CertificateError(
                f"the signature is not that of key {self.keyid[:16]} ({self.name}) over this "
                "certificate: it was changed after it was signed"
            ) from None

    def check_period(self, moment: datetime, what: str) -> None:
        """Raises CertificateError unless the key is valid at `moment`."""
        if not self.valid_from <= moment <= self.valid_until:
            raise CertificateError(
                f"key {self.keyid[:16]} ({self.name}) is valid from {time_text(self.valid_from)} "
                f"until {time_text(self.valid_until)}, not at {time_text(moment)}, {what}; ask its "
                "owner for a certificate signed with a valid key"
            )


class _KeyEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keyid: str
    name: str
    public_key: str
    valid_from: str
    valid_until: str


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keys: list[_KeyEntry]


@dataclass(frozen=True, slots=True)
class TrustStore:
    """The keys whose certificates a verifier accepts."""

    keys: tuple[TrustedKey, ...]

    def find(self, identifier: str) -> TrustedKey:
        """The key with this id; raises CertificateError if it is unknown."""
        for key in self.keys:
            if key.keyid == identifier:
                return key
        raise CertificateError(
            f"the certificate is signed with key {identifier[:16]!r}, which is not among the "
            f"{len(self.keys)} trusted; add it with --trust or --public-key if you trust its owner"
        )

    def to_bytes(self) -> bytes:
        """The JSON file that `read_trust` reads."""
        return canonical_json({"keys": [_entry(key) for key in self.keys]}) + b"\n"


def keyid(key: Ed25519PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in DER, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(*_DER)).hexdigest()


def public_pem(key: Ed25519PublicKey) -> bytes:
    """SubjectPublicKeyInfo as PEM, as OpenSSL and cosign read it."""
    return key.public_bytes(*_PEM)


def parse_public_pem(pem: bytes, what: str) -> Ed25519PublicKey:
    """Raises SigningKeyError unless `pem` is an Ed25519 public key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError(f"{what} holds no Ed25519 public key in PEM; `cert keygen` makes one")
    return key


def read_public_key(path: Path) -> TrustedKey:
    """A PEM file, trusted without limit of time; raises SigningKeyError."""
    return TrustedKey(parse_public_pem(_read(path), str(path)), path.name)


def read_trust(path: Path) -> TrustStore:
    """A trust store: `{"keys": [{keyid, name, public_key, valid_from, valid_until}]}`.

    `public_key` is the 32 raw bytes in base64; times are as in 2026-01-31T12:00:00Z, both ends
    included.

    Raises:
        SigningKeyError: it cannot be read, is not of this form, or an id is not its key's.
    """
    try:
        fields = parse_json(_read(path), str(path))
        entries = _KeyFile.model_validate(fields).keys
        return TrustStore(tuple(_trusted(entry) for entry in entries))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        reason = f"{where}: {error.errors()[0]['msg']}"
        raise SigningKeyError(f"trust store {path} is not of the expected form: {reason}") from None
    except (CertificateError, ValueError) as error:
        raise SigningKeyError(f"trust store {path} cannot be used: {error}") from None


def merged(stores: Iterable[TrustStore]) -> TrustStore:
    """All keys of several stores; of one key named twice, the first entry counts."""
    keys: dict[str, TrustedKey] = {}
    for store in stores:
        for key in store.keys:
            keys.setdefault(key.keyid, key)
    return TrustStore(tuple(keys.values()))


def _trusted(entry: _KeyEntry) -> TrustedKey:
    key = Ed25519PublicKey.from_public_bytes(decode_base64(entry.public_key, "public_key"))
    period = parse_time(entry.valid_from), parse_time(entry.valid_until)
    trusted = TrustedKey(key, entry.name, *period)
    if trusted.keyid != entry.keyid:
        raise ValueError(f"keyid {entry.keyid[:16]} is not that of its public_key")
    return trusted


def _entry(key: TrustedKey) -> dict[str, str]:
    return {
        "keyid": key.keyid,
        "name": key.name,
        "public_key": encode_base64(key.key.public_bytes(*_RAW)),
        "valid_from": time_text(key.valid_from),
        "valid_until": time_text(key.valid_until),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SigningKeyError(f"key file {path} cannot be read: {error.strerror}") from None
