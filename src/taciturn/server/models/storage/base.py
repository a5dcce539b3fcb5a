"""The port to where released files are kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

CHUNK_BYTES = 2**20
_KEY = re.compile(r"^[a-z0-9_]+(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$")


class FileTooLargeError(Exception):
    """More bytes came than were allowed; nothing is kept."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Size and digest of a file that was kept."""

    size_bytes: int
    sha256: str


class FileStore(Protocol):
    """Files by key, such as `jobs/job_1/adapter_config.json`.

    A file is there whole or not at all: nobody reads one that is still being written.
    """

    def write(self, key: str, chunks: Iterable[bytes], limit_bytes: int) -> Stored:
        """Keep a file, in place of an earlier one; FileTooLargeError if it is above the limit."""

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start`, piece by piece; raises KeyError if there is no such file."""

    def size(self, key: str) -> int:
        """Size of a file in bytes; raises KeyError if there is no such file."""

    def delete(self, key: str) -> None:
        """Remove it; nothing happens if it is not there."""


def check_key(key: str) -> str:
    """The key; raises ValueError if it could lead out of the store."""
    if not _KEY.match(key) or ".." in key:
        raise ValueError(f"{key!r} is not a key of the store")
    return key


class MeasuredChunks:
    """Passes chunks on, counts and digests them, and stops at the limit."""

    def __init__(self, chunks: Iterable[bytes], limit_bytes: int) -> None:
        self._chunks, self._limit_bytes = chunks, limit_bytes
        self._size_bytes, self._digest = 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._size_bytes += len(chunk)
            if self._size_bytes > self._limit_bytes:
                raise FileTooLargeError(f"at most {self._limit_bytes} bytes are kept")
            self._digest.update(chunk)
            yield chunk

    @property
    def stored(self) -> Stored:
        """Size and digest of what was passed on so far."""
        return Stored(self._size_bytes, self._digest.hexdigest())
