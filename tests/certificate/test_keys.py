"""Trust stores: what is in them is checked, what is not is unknown."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from taciturn.certificate.keys import (
    TrustStore,
    merged,
    public_pem,
    read_public_key,
    read_trust,
)
from taciturn.errors import CertificateError, SigningKeyError


def test_round_trip(trust: TrustStore, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(trust.to_bytes())
    again = read_trust(path)
    assert again.to_bytes() == trust.to_bytes()
    assert again.find(trust.keys[0].keyid).name == "a hospital"


def test_unknown_key(trust: TrustStore) -> None:
    with pytest.raises(CertificateError, match="not among the 1 trusted"):
        trust.find("00" * 32)


def test_period_includes_both_ends(trust: TrustStore) -> None:
    key = trust.keys[0]
    key.check_period(key.valid_from, "then")
    key.check_period(key.valid_until, "then")
    for outside in (key.valid_from - timedelta(seconds=1), key.valid_until + timedelta(seconds=1)):
        with pytest.raises(CertificateError, match="is valid from"):
            key.check_period(outside, "then")


@pytest.mark.parametrize(
    "change",
    [
        {"keyid": "00" * 32},
        {"public_key": "QUJD"},
        {"public_key": 3},
        {"valid_until": "tomorrow"},
        {"extra": "x"},
    ],
)
def test_damaged_trust_store(trust: TrustStore, tmp_path: Path, change: dict[str, Any]) -> None:
    fields = json.loads(trust.to_bytes())
    fields["keys"][0] |= change
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(SigningKeyError, match="trust store"):
        read_trust(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys":3}', '{"keys":[{}]}'])
def test_trust_store_of_another_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SigningKeyError, match="trust store"):
        read_trust(path)
    with pytest.raises(SigningKeyError, match="cannot be read"):
        read_trust(tmp_path / "none.json")


def test_public_key_in_pem(trust: TrustStore, tmp_path: Path, moment: datetime) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(public_pem(trust.keys[0].key))
    key = read_public_key(path)
    assert key.keyid == trust.keys[0].keyid
    key.check_period(moment + timedelta(days=100_000), "much later")
    assert len(merged([trust, TrustStore((key,))]).keys) == 1


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    path.write_bytes(
        other.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(SigningKeyError, match="no Ed25519 public key"):
        read_public_key(path)
    path.write_text("not a key")
    with pytest.raises(SigningKeyError, match="no Ed25519 public key"):
        read_public_key(path)
