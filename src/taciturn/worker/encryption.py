"""Files that only the holder of a key can read, and that are good in one place only.

An object is sealed with AES-256-GCM in pieces, so that a checkpoint of any size goes through
bounded memory. It has a key of its own, HKDF-SHA256 of the owner's key and a fresh salt, so that no
nonce comes twice under one key: within an object the pieces are counted. The last piece says that
it is the last, so that an object cut short is not taken for a whole one (the STREAM construction of
Hoang, Reyhanitabar, Rogaway and Vizár, 2015).

What an object is, and whose, is associated data of every piece: one that was moved or exchanged
does not open in its new place.

    magic | key's name, 8 bytes | salt, 32 bytes | piece 0 | piece 1 | ... | last piece
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from taciturn.errors import CheckpointError

KEY_BYTES = 32
_MAGIC = b"taciturn sealed 1\n"
_NAME_BYTES, _SALT_BYTES, _TAG_BYTES = 8, 32, 16
_PIECE_BYTES = 4 << 20


class SealError(CheckpointError):
    """An object is not as it was sealed: cut off, changed, or from another place."""


class OtherKeyError(SealError):
    """An object was sealed under another key."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of an object in the checkpoint store.

    Attributes:
        job, lease: whose it is, and which of the job's workers wrote it.
        step: of the checkpoint.
        name: of the file.
    """

    job: str
    lease: int
    step: int
    name: str


def associated(place: Place) -> bytes:
    """Associated data that binds every piece of an object to this place."""
    return json.dumps(asdict(place), sort_keys=True).encode()


def seal(key: bytes, place: Place, source: BinaryIO, target: BinaryIO) -> None:
    """Write all of `source` to `target`, sealed for `place`."""
    salt = os.urandom(_SALT_BYTES)
    target.write(_MAGIC + _derived(key, b"", b"name", _NAME_BYTES) + salt)
    cipher, bound = AESGCM(_derived(key, salt, b"object", KEY_BYTES)), associated(place)
    for number, (piece, last) in enumerate(_pieces(source, _PIECE_BYTES)):
        target.write(cipher.encrypt(_nonce(number, last), piece, bound))


def unseal(key: bytes, place: Place, source: BinaryIO, target: BinaryIO) -> None:
    """The inverse. What was written to `target` before an error must not be used.

    Raises:
        OtherKeyError: it was sealed under another key.
        SealError: it is not whole, was changed, or belongs to another place.
    """
    magic, name = _read(source, len(_MAGIC)), _read(source, _NAME_BYTES)
    salt = _read(source, _SALT_BYTES)
    if magic != _MAGIC or len(salt) != _SALT_BYTES:
        raise SealError("the object is not sealed, or not complete")
    if name != _derived(key, b"", b"name", _NAME_BYTES):
        raise OtherKeyError("sealed under another key; give the one that it was sealed under")
    cipher, bound = AESGCM(_derived(key, salt, b"object", KEY_BYTES)), associated(place)
    try:
        for number, (piece, last) in enumerate(_pieces(source, _PIECE_BYTES + _TAG_BYTES)):
            target.write(cipher.decrypt(_nonce(number, last), piece, bound))
    except (InvalidTag, ValueError):
        raise SealError(
            "the object was changed, was cut off, or belongs to another place"
        ) from None


def _pieces(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of `size` bytes but the last, and whether it is that; an empty source has one."""
    piece = _read(source, size)
    while True:
        following = _read(source, size)
        yield piece, not following
        if not following:
            return
        piece = following


def _read(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end: a store's file may give less than it was asked for."""
    parts: list[bytes] = []
    while size > 0 and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _derived(key: bytes, salt: bytes, purpose: bytes, length: int) -> bytes:
    context = b"taciturn vault 1: " + purpose
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=context).derive(key)
