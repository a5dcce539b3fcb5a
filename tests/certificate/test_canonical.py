"""One value, one text: whatever else says the same is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.certificate.canonical import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical,
)
from taciturn.errors import CertificateError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_is_written_is_read(value: object) -> None:
    assert parse_canonical(canonical_json(value), "it") == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}', '{"b":1,"a":2}', '{"a":1,"a":1}', '{"a":1}\n', ' {"a":1}', '{"a":1.0e0}',
        '{"a":"\\u0041"}', '{"a":NaN}', '{"a":Infinity}', '{"a":1}{"a":1}', '{"a":1', "", "\ufeff1",
        '{"a":1e999}', '"\\ud800"', "[" * 100_000, "9" * 10_000,
    ],
)  # fmt: skip
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(CertificateError):
        parse_canonical(text.encode(), "it")


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(CertificateError, match="not JSON"):
        parse_canonical(b"\xff\xfe", "it")


def test_a_cut_is_called_a_cut() -> None:
    with pytest.raises(CertificateError, match="truncated"):
        parse_canonical(b'{"a":[1,2', "it")


@given(st.binary(min_size=1))
def test_base64_has_one_spelling(data: bytes) -> None:
    assert decode_base64(encode_base64(data), "it") == data


@pytest.mark.parametrize(
    "text", ["", "QUJ", "QUJ=", "QQ", "QR==", "Q Q=", "QQ==\n", "_-8=", 3, None]
)
def test_other_base64_is_refused(text: object) -> None:
    with pytest.raises(CertificateError, match="base64"):
        decode_base64(text, "it")
