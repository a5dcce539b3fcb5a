"""Keys come from files, variables and commands, and stay out of every message."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from taciturn.certificate.keygen import KeyFiles, write_key
from taciturn.certificate.keys import keyid
from taciturn.certificate.signers import (
    KEY_VARIABLE,
    PASSWORD_VARIABLE,
    CommandSigner,
    KeySigner,
    find_signer,
    need_signer,
)
from taciturn.errors import OutputError, SigningKeyError, SpecError

START = datetime(2026, 1, 1, tzinfo=UTC)

HOOK = """
import base64, sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from taciturn.certificate.keys import public_pem
key = load_pem_private_key(open({path!r}, "rb").read(), None)
if sys.argv[1] == "public-key":
    sys.stdout.buffer.write(public_pem(key.public_key()))
else:
    signature = key.sign(sys.stdin.buffer.read())
    sys.stdout.buffer.write({answer})
"""


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    return write_key(tmp_path / "k", name="me", valid_from=START, days=10, password=None)


@pytest.fixture
def hook(tmp_path: Path, key: KeyFiles) -> Callable[[str], str]:
    def made(answer: str) -> str:
        script = tmp_path / "hook with space.py"
        script.write_text(HOOK.format(path=str(key.private), answer=answer))
        return "command:" + shlex.join([sys.executable, str(script)])

    return made


def test_new_keys_are_secret_and_described(key: KeyFiles) -> None:
    assert key.private.stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in key.public.read_bytes() + key.trust.read_bytes()
    assert key.keyid in key.trust.read_text()
    assert "2026-01-11T00:00:00Z" in key.trust.read_text()


def test_existing_keys_are_not_overwritten(key: KeyFiles, tmp_path: Path) -> None:
    before = key.private.read_bytes()
    with pytest.raises(OutputError, match="nothing was left behind"):
        write_key(tmp_path / "k", name="me", valid_from=START, days=10, password=None)
    assert key.private.read_bytes() == before
    (tmp_path / "l.trust.json").write_text("mine")
    with pytest.raises(OutputError):
        write_key(tmp_path / "l", name="me", valid_from=START, days=10, password=None)
    assert not (tmp_path / "l.pem").exists()
    with pytest.raises(SpecError, match="3650"):
        write_key(tmp_path / "m", name="me", valid_from=START, days=0, password=None)


def test_file_and_variable_give_the_same_key(key: KeyFiles) -> None:
    pem = key.private.read_text()
    cases: list[tuple[str | None, dict[str, str]]] = [
        (str(key.private), {}),
        (f"file:{key.private}", {}),
        ("env:MINE", {"MINE": pem}),
        (None, {KEY_VARIABLE: pem}),
        (None, {KEY_VARIABLE: str(key.private)}),
        (None, {KEY_VARIABLE: "env:MINE", "MINE": pem}),
        (str(key.private), {PASSWORD_VARIABLE: "not needed"}),
    ]
    for reference, environment in cases:
        signer = find_signer(reference, environment)
        assert signer is not None
        assert keyid(signer.public_key) == key.keyid


def test_no_key_configured() -> None:
    assert find_signer(None, {}) is None
    assert find_signer(None, {KEY_VARIABLE: " "}) is None


def test_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(SigningKeyError, match="cert keygen"):
        need_signer(None)


def test_encrypted_keys(tmp_path: Path) -> None:
    key = write_key(tmp_path / "k", name="me", valid_from=START, days=1, password="geheim")
    reference = str(key.private)
    signer = find_signer(reference, {PASSWORD_VARIABLE: "geheim"})
    assert signer is not None
    assert keyid(signer.public_key) == key.keyid
    with pytest.raises(SigningKeyError, match="is encrypted"):
        find_signer(reference, {})
    with pytest.raises(SigningKeyError, match="wrong password") as caught:
        find_signer(reference, {PASSWORD_VARIABLE: "falsch"})
    assert "falsch" not in str(caught.value)


@pytest.mark.parametrize("answer", ["signature", "base64.b64encode(signature) + b'\\n'"])
def test_a_command_signs(hook: Callable[[str], str], key: KeyFiles, answer: str) -> None:
    signer = find_signer(hook(answer), {})
    assert isinstance(signer, CommandSigner)
    assert keyid(signer.public_key) == key.keyid
    signer.public_key.verify(signer.sign(b"message"), b"message")


@pytest.mark.parametrize("answer", ["b'secret'", "b''", "signature + b'x'"])
def test_a_command_that_signs_nothing(hook: Callable[[str], str], answer: str) -> None:
    signer = find_signer(hook(answer), {})
    assert signer is not None
    with pytest.raises(SigningKeyError, match="64 bytes") as caught:
        signer.sign(b"message")
    assert "secret" not in str(caught.value)


def test_commands_that_fail(tmp_path: Path) -> None:
    failing = f"command:{shlex.join([sys.executable, '-c', 'import sys; sys.exit(3)'])}"
    signer = find_signer(failing, {})
    assert signer is not None
    with pytest.raises(SigningKeyError, match="code 3"):
        signer.sign(b"x")
    absent = find_signer(f"command:{tmp_path / 'none'}", {})
    assert absent is not None
    with pytest.raises(SigningKeyError, match="FileNotFoundError"):
        absent.sign(b"x")
    for empty in ("command:", "command:'"):
        with pytest.raises(SigningKeyError, match="needs a program"):
            find_signer(empty, {})


def test_keys_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match="cannot be read"):
        find_signer(str(tmp_path / "none.pem"), {})
    with pytest.raises(SigningKeyError, match="'NOT_SET' is not set"):
        find_signer("env:NOT_SET", {})
    with pytest.raises(SigningKeyError, match="no readable private key") as caught:
        find_signer("env:MINE", {"MINE": "very-secret-nonsense"})
    assert "very-secret" not in str(caught.value)


def test_a_signer_shows_nothing(signer: KeySigner) -> None:
    assert "private" not in repr(signer).lower()
    assert os.fsencode(repr(signer)).find(bytes(range(32))) < 0
