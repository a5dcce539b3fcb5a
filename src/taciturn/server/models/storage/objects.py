"""Files in whatever fsspec reaches: s3://, gs://, abfs://, memory://."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from secrets import token_hex
from typing import Any

from taciturn.data.filesystem import S3, open_filesystem
from taciturn.server.models.storage.base import CHUNK_BYTES, MeasuredChunks, Stored, check_key


class ObjectStore:
    """A prefix of an object store. Credentials are the machine's own, as the store's client
    finds them."""

    def __init__(self, url: str) -> None:
        self._files: Any
        self._files, prefix = open_filesystem(url)
        self._prefix = prefix.rstrip("/")
        # S3 has none, and an empty object in place of one may lie where nobody may write.
        self._has_folders = not url.startswith(S3)

    def write(self, key: str, chunks: Iterable[bytes], limit_bytes: int) -> Stored:
        """See Store. A half-written object has another name, and is removed."""
        path = self._path(key)
        partial = f"{path}.{token_hex(8)}.partial"
        if self._has_folders:
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        measured = MeasuredChunks(chunks, limit_bytes)
        try:
            with self._files.open(partial, "wb") as file:
                for chunk in measured:
                    file.write(chunk)
            self._files.mv(partial, path)
        except BaseException:
            with suppress(FileNotFoundError):
                self._files.rm_file(partial)
            raise
        return measured.stored

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See Store."""
        size = self.size(key)
        return self._read(self._path(key), start, size - start if length is None else length)

    def size(self, key: str) -> int:
        """See Store."""
        path = self._path(key)
        try:
            return int(self._files.size(path))
        except FileNotFoundError:
            raise KeyError(key) from None

    def delete(self, key: str) -> None:
        """See Store."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{check_key(key)}"

    def _read(self, path: str, start: int, length: int) -> Iterator[bytes]:
        with self._files.open(path, "rb") as file:
            file.seek(start)
            while length > 0 and (chunk := file.read(min(length, CHUNK_BYTES))):
                length -= len(chunk)
                yield chunk
