"""One contract, passed by every store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from taciturn.server.models.storage import (
    DiskStore,
    FileStore,
    FileTooLargeError,
    ObjectStore,
    open_store,
)
from taciturn.server.settings import Settings

KEY = "jobs/job_1/adapter_config.json"


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "disk":
        return open_store(Settings(data_dir=tmp_path))
    return open_store(Settings(storage_url=f"memory://{tmp_path.name}"))


def _content(store: FileStore, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(store.get(KEY, start, length))


def test_what_is_put_is_got(store: FileStore) -> None:
    kept = store.write(KEY, [b"abc", b"", b"def"], 6)
    assert (kept.size_bytes, kept.sha256) == (6, hashlib.sha256(b"abcdef").hexdigest())
    assert (store.size(KEY), _content(store)) == (6, b"abcdef")


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(2, 3, b"cde"), (4, None, b"ef"), (0, 0, b""), (5, 9, b"f"), (6, None, b"")],
)
def test_a_range(store: FileStore, start: int, length: int | None, expected: bytes) -> None:
    store.write(KEY, [b"abcdef"], 100)
    assert _content(store, start, length) == expected


def test_a_later_file_takes_the_place_of_an_earlier_one(store: FileStore) -> None:
    store.write(KEY, [b"earlier"], 100)
    store.write(KEY, [b"later"], 100)
    assert _content(store) == b"later"


def test_too_much_keeps_what_was_there(store: FileStore) -> None:
    store.write(KEY, [b"earlier"], 100)
    with pytest.raises(FileTooLargeError):
        store.write(KEY, [b"a" * 60, b"b" * 60], 100)
    assert _content(store) == b"earlier"


def test_a_writer_that_fails_leaves_nothing(store: FileStore) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.write(KEY, failing(), 100)
    with pytest.raises(KeyError):
        store.size(KEY)
    with pytest.raises(KeyError):
        store.get(KEY)


def test_removing_twice_is_once(store: FileStore) -> None:
    store.write(KEY, [b"x"], 1)
    store.delete(KEY)
    store.delete(KEY)
    with pytest.raises(KeyError):
        store.size(KEY)


@pytest.mark.parametrize(
    "key", ["../secret", "jobs/../../secret", "/etc/passwd", "jobs", "jobs//x", "jobs/.x", ""]
)
def test_no_key_leads_out(store: FileStore, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        store.write(key, [b"x"], 1)


def test_files_on_disk_are_ours_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "files")
    store.write(KEY, [b"x"], 1)
    with pytest.raises(FileTooLargeError):
        store.write(KEY, [b"xx"], 1)
    (path,) = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_half_written_objects_are_removed(tmp_path: Path) -> None:
    store = ObjectStore(f"memory://{tmp_path.name}-half")
    with pytest.raises(FileTooLargeError):
        store.write(KEY, [b"xx"], 1)
    assert store._files.find(store._prefix) == []
