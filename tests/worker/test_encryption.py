"""Sealed objects: only the key opens them, only whole, and only in their place."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.worker import encryption
from taciturn.worker.encryption import OtherKeyError, Place, SealError, seal, unseal

KEY = bytes(range(32))
HERE = Place("job_1", 3, 20, "checkpoints/step-00000020/state.safetensors")


def sealed(content: bytes, place: Place = HERE, key: bytes = KEY) -> bytes:
    target = io.BytesIO()
    seal(key, place, io.BytesIO(content), target)
    return target.getvalue()


def opened(content: bytes, place: Place = HERE, key: bytes = KEY) -> bytes:
    target = io.BytesIO()
    unseal(key, place, io.BytesIO(content), target)
    return target.getvalue()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "_PIECE_BYTES", 7)


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 13, 14, 15, 700])
def test_what_was_sealed_comes_out(length: int, small_pieces: None) -> None:
    content = bytes(i % 251 for i in range(length))
    assert opened(sealed(content)) == content


class _Slow(io.BytesIO):
    """A file that gives one byte at a time, as a connection may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1, size) if size is not None and size > 0 else size)


def test_a_file_that_gives_less_than_asked_is_read_whole(small_pieces: None) -> None:
    target = io.BytesIO()
    unseal(KEY, HERE, _Slow(sealed(b"a patient has a cough")), target)
    assert target.getvalue() == b"a patient has a cough"


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HERE, job="job_2"),
        replace(HERE, lease=4),
        replace(HERE, step=30),
        replace(HERE, name="data/tokens.arrow"),
    ],
    ids=["job", "lease", "step", "name"],
)
def test_another_place_does_not_open_it(elsewhere: Place) -> None:
    with pytest.raises(SealError):
        opened(sealed(b"content"), elsewhere)


def test_another_key_is_named_as_such() -> None:
    with pytest.raises(OtherKeyError, match="another key"):
        opened(sealed(b"content"), key=bytes(32))


@given(st.integers(min_value=0, max_value=10**6), st.integers(min_value=1, max_value=255))
def test_no_byte_can_be_changed(where: int, by: int) -> None:
    changed = bytearray(sealed(b"x" * 40))
    changed[where % len(changed)] ^= by
    with pytest.raises(SealError):
        opened(bytes(changed))


def test_every_cut_is_seen(small_pieces: None) -> None:
    whole = sealed(b"x" * 30)
    for length in range(len(whole)):
        with pytest.raises(SealError):
            opened(whole[:length])
    with pytest.raises(SealError):
        opened(whole + b"y")


def test_pieces_cannot_change_places(small_pieces: None) -> None:
    whole = sealed(b"x" * 28)
    start, size = len(whole) - 4 * 23, 23
    first, second = whole[start : start + size], whole[start + size : start + 2 * size]
    with pytest.raises(SealError):
        opened(whole[:start] + second + first + whole[start + 2 * size :])


def test_nothing_is_sealed_twice_the_same() -> None:
    """Each object has a key of its own, so counted nonces never meet."""
    salts: set[Any] = set()
    for _ in range(50):
        salts.add(sealed(b"same")[26:58])
    assert len(salts) == 50
