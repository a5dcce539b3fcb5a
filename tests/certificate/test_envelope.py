"""The envelope is DSSE as specified, and read only as we write it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from taciturn.certificate.envelope import LIMIT_BYTES, Envelope, pae
from taciturn.certificate.keys import public_pem
from taciturn.certificate.signers import KeySigner
from taciturn.errors import CertificateError

ENVELOPE = Envelope(b'{"a":1}', "00" * 32, bytes(64))


def test_pae_is_that_of_the_specification() -> None:
    """The example in the protocol of DSSE, version 1."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae(b"hello world", "http://example.com/HelloWorld") == expected


def test_lengths_are_those_of_bytes() -> None:
    assert pae("ü".encode(), "é") == "DSSEv1 2 é 2 ü".encode()


def test_round_trip_and_fields() -> None:
    data = ENVELOPE.to_bytes()
    assert Envelope.from_bytes(data) == ENVELOPE
    fields = json.loads(data)
    assert set(fields) == {"payload", "payloadType", "signatures"}
    assert fields["payloadType"] == "application/vnd.in-toto+json"
    assert set(fields["signatures"][0]) == {"keyid", "sig"}


@pytest.mark.parametrize("size", [0, 1, 50, -2, -1])
def test_truncation_is_refused(size: int) -> None:
    with pytest.raises(CertificateError, match=r"truncated|canonical"):
        Envelope.from_bytes(ENVELOPE.to_bytes()[:size])


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/plain"},
        {"signatures": []},
        {"signatures": "x"},
        {"signatures": [{"keyid": "a", "sig": "QUJD"}] * 2},
        {"signatures": [{"keyid": 3, "sig": "QUJD"}]},
        {"signatures": [{"keyid": "a"}]},
        {"payload": 7},
        {"more": 1},
    ],
)
def test_other_envelopes_are_refused(change: dict[str, object]) -> None:
    from taciturn.certificate.canonical import canonical_json

    fields = {**json.loads(ENVELOPE.to_bytes()), **change}
    with pytest.raises(CertificateError):
        Envelope.from_bytes(canonical_json(fields) + b"\n")


def test_large_files_are_not_parsed() -> None:
    with pytest.raises(CertificateError, match="at most"):
        Envelope.from_bytes(b" " * (LIMIT_BYTES + 1))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_openssl_agrees(certificate: bytes, signer: KeySigner, tmp_path: Path) -> None:
    """A stranger's Ed25519 accepts the signature over the specified bytes."""
    envelope = Envelope.from_bytes(certificate)
    (tmp_path / "key.pub").write_bytes(public_pem(signer.public_key))
    (tmp_path / "message").write_bytes(pae(envelope.payload))
    (tmp_path / "signature").write_bytes(envelope.signature)
    command = "openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in message -sigfile signature"
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "message").write_bytes(pae(envelope.payload + b" "))
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
