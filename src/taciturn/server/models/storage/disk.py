"""Files on a local disk, readable by the gateway's user alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from taciturn.server.models.storage.base import CHUNK_BYTES, MeasuredChunks, Stored, check_key


@dataclass(frozen=True, slots=True)
class DiskStore:
    """A folder. What is written appears by a rename, after it is on disk."""

    folder: Path

    def write(self, key: str, chunks: Iterable[bytes], limit_bytes: int) -> Stored:
        """See Store."""
        path = self._path(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{token_hex(8)}")
        measured = MeasuredChunks(chunks, limit_bytes)
        try:
            _write(partial, measured)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)
        return measured.stored

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See Store."""
        self.size(key)
        return _read(self._path(key), start, length)

    def size(self, key: str) -> int:
        """See Store."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            raise KeyError(key) from None

    def delete(self, key: str) -> None:
        """See Store."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / check_key(key)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename is kept only once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, start: int, length: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        n_left = path.stat().st_size - start if length is None else length
        while n_left > 0 and (chunk := file.read(min(n_left, CHUNK_BYTES))):
            n_left -= len(chunk)
            yield chunk
