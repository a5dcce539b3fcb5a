"""Signers: a key in a file or an environment variable, or a command that asks an HSM or a KMS.

A key reference is one of

- `path/to/key.pem` or `file:path/to/key.pem`: PKCS#8 PEM, Ed25519;
- `env:NAME`: the same PEM in an environment variable;
- `command:PROGRAM ARGUMENTS`: called as `PROGRAM ARGUMENTS public-key`, it prints the public key in
  PEM; called as `PROGRAM ARGUMENTS sign` with the bytes to sign on standard input, it prints the
  signature, 64 raw bytes or their base64. The private key never enters this process: that is how a
  PKCS#11 token or a cloud KMS is attached. No shell is involved.

Without a reference, TACITURN_SIGNING_KEY holds one, or the PEM itself. An encrypted PEM is opened
with TACITURN_SIGNING_KEY_PASSWORD.
"""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from taciturn.certificate.keys import parse_public_pem
from taciturn.errors import SigningKeyError

KEY_VARIABLE = "TACITURN_SIGNING_KEY"
PASSWORD_VARIABLE = "TACITURN_SIGNING_KEY_PASSWORD"
_BEGIN = "-----BEGIN"
_SIGNATURE_BYTES = 64
_TIMEOUT_S = 60


class Signer(Protocol):
    """Signer with Ed25519."""

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that checks the signatures."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the Ed25519 signature over `message` (RFC 8032, pure, no prehash)."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class KeySigner:
    """Signs with a private key held in memory; it shows itself nowhere."""

    key: Ed25519PrivateKey

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that checks the signatures."""
        return self.key.public_key()

    def sign(self, message: bytes) -> bytes:
        """Ed25519 over `message`."""
        return self.key.sign(message)


@dataclass(frozen=True, slots=True)
class CommandSigner:
    """Signs by calling a program, which holds the key or knows who does."""

    command: tuple[str, ...]

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that checks the signatures; asked of the program."""
        return parse_public_pem(self._call("public-key", b""), f"the output of {self.command[0]}")

    def sign(self, message: bytes) -> bytes:
        """Answer of the program; raises SigningKeyError if that is no signature."""
        answer = self._call("sign", message)
        if len(answer) == _SIGNATURE_BYTES:
            return answer
        try:
            signature = base64.b64decode(answer.strip(), validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        if len(signature) != _SIGNATURE_BYTES:
            raise SigningKeyError(
                f"signing command {self.command[0]} printed {len(answer)} bytes; it must print the "
                f"{_SIGNATURE_BYTES} bytes of an Ed25519 signature, raw or in base64"
            )
        return signature

    def _call(self, action: str, message: bytes) -> bytes:
        try:
            completed = subprocess.run(
                [*self.command, action],
                input=message,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise SigningKeyError(
                f"signing command {self.command[0]} failed ({type(error).__name__}); try it by hand"
            ) from None
        if completed.returncode:
            # Its messages stay unread: a program may print what should stay secret.
            raise SigningKeyError(
                f"signing command {self.command[0]} ended with code {completed.returncode} on "
                f"{action!r}; try it by hand"
            )
        return completed.stdout


def find_signer(
    reference: str | None, environment: Mapping[str, str] = os.environ
) -> Signer | None:
    """The signer that `reference`, or TACITURN_SIGNING_KEY, names; None where neither is there.

    Raises:
        SigningKeyError: it is named, and cannot be used. No message holds any of the key.
    """
    password = environment.get(PASSWORD_VARIABLE)
    configured = environment.get(KEY_VARIABLE, "").strip()
    if reference is None and configured.startswith(_BEGIN):
        return _key_signer(
            os.fsencode(configured), password, f"environment variable {KEY_VARIABLE}"
        )
    reference = reference if reference is not None else configured
    if not reference:
        return None
    kind, colon, rest = reference.partition(":")
    if colon and kind == "command":
        return CommandSigner(_words(rest))
    if colon and kind == "env":
        if not environment.get(rest):
            raise SigningKeyError(
                f"environment variable {rest!r} is not set; put the key's PEM in it"
            )
        return _key_signer(os.fsencode(environment[rest]), password, f"environment variable {rest}")
    path = Path(rest if colon and kind == "file" else reference).expanduser()
    try:
        pem = path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SigningKeyError(
            f"signing key {path} cannot be read ({why}); make one with "
            "`taciturn cert keygen`, or name env:VARIABLE or command:PROGRAM"
        ) from None
    return _key_signer(pem, password, f"signing key {path}")


def need_signer(reference: str | None) -> Signer:
    """Return the signer of `find_signer`, which must be there; raises SigningKeyError if none is
    configured."""
    signer = find_signer(reference)
    if signer is None:
        raise SigningKeyError(
            f"no signing key is configured; give one, or set {KEY_VARIABLE}; "
            "`taciturn cert keygen` makes one"
        )
    return signer


def _words(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError:
        words = ()
    if not words:
        raise SigningKeyError(
            "a signing command needs a program, as in command:/usr/local/bin/kms-sign --key 7"
        )
    return words


def _key_signer(pem: bytes, password: str | None, what: str) -> KeySigner:
    secret = None if password is None else os.fsencode(password)
    try:
        key = serialization.load_pem_private_key(pem, secret)
    except TypeError:
        if secret is not None:  # the key is not encrypted
            return _key_signer(pem, None, what)
        raise SigningKeyError(
            f"{what} is encrypted; set {PASSWORD_VARIABLE} to its password"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        remedy = "wrong password?" if secret is not None else "`taciturn cert keygen` makes one"
        raise SigningKeyError(f"{what} holds no readable private key in PEM; {remedy}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{what} is not an Ed25519 key; `taciturn cert keygen` makes one")
    return KeySigner(key)
