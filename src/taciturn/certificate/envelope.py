"""DSSE, the envelope that cosign and in-toto read: https://github.com/secure-systems-lab/dsse.

The signature covers `pae(type, payload)`, so that neither can be read as anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taciturn.certificate.canonical import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical,
)
from taciturn.errors import CertificateError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""Payload type of an in-toto statement."""

LIMIT_BYTES = 4 * 2**20
"""Larger files are refused unread; a certificate takes a few kilobytes."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and the one signature over it; nothing about it has been checked."""

    payload: bytes
    keyid: str
    signature: bytes

    def to_bytes(self) -> bytes:
        """The file: canonical JSON and a newline."""
        fields = {
            "payload": encode_base64(self.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": self.keyid, "sig": encode_base64(self.signature)}],
        }
        return canonical_json(fields) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Read what `to_bytes` wrote, and nothing else.

        Raises:
            CertificateError: too large, truncated, or not byte for byte an envelope.
        """
        if len(data) > LIMIT_BYTES:
            raise CertificateError(
                f"the certificate has {len(data)} bytes, and at most {LIMIT_BYTES} are read; is "
                "this another file?"
            )
        if not data:
            raise CertificateError("the certificate is empty: is the file truncated?")
        value = parse_canonical(data.removesuffix(b"\n"), "the certificate")
        envelope = cls._of(value)
        if envelope.to_bytes() != data:
            raise CertificateError("the certificate is not in canonical form: it was changed")
        return envelope

    @classmethod
    def _of(cls, value: Any) -> Envelope:
        fields = _mapping(value, {"payload", "payloadType", "signatures"}, "the certificate")
        if fields["payloadType"] != PAYLOAD_TYPE:
            raise CertificateError(f"payloadType must be {PAYLOAD_TYPE}; this is another envelope")
        signatures = fields["signatures"]
        if not isinstance(signatures, list) or len(signatures) != 1:
            raise CertificateError("the certificate must have exactly one signature")
        signature = _mapping(signatures[0], {"keyid", "sig"}, "the signature")
        if not isinstance(signature["keyid"], str):
            raise CertificateError("the signature's keyid must be text")
        return cls(
            decode_base64(fields["payload"], "the payload"),
            signature["keyid"],
            decode_base64(signature["sig"], "the signature"),
        )


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Pre-authentication encoding (DSSE protocol, section "Signature Definition")."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _mapping(value: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        raise CertificateError(f"{what} must have the fields {', '.join(sorted(names))}, no others")
    return value
