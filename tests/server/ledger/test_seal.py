"""Seals are true for one row under one key, and the key shows itself nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.errors import LedgerTamperedError, SigningKeyError, SpecError
from taciturn.server.ledger import Anchor, SealKey, anchors_text, read_anchors

KEY = SealKey(b"k" * 32)
fields = st.lists(st.text(max_size=5) | st.integers() | st.booleans(), min_size=1, max_size=4)


@given(fields, fields)
def test_a_seal_is_of_one_row(one: list[object], other: list[object]) -> None:
    seal = KEY.seal("table", one)
    KEY.check("table", one, seal)
    if repr(one) != repr(other):
        with pytest.raises(LedgerTamperedError):
            KEY.check("table", other, seal)


def test_a_seal_is_of_one_table_and_key() -> None:
    seal = KEY.seal("table", ["a"])
    for key, table in ((KEY, "other"), (SealKey.generate(), "table")):
        with pytest.raises(LedgerTamperedError):
            key.check(table, ["a"], seal)


def test_a_key_reads_as_it_was_written() -> None:
    key = SealKey.generate()
    assert SealKey.from_text(key.to_text() + "\n") == key
    assert SealKey.generate() != key
    assert key.to_text() not in repr(key)
    assert key.to_text() not in str(key)


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31])
def test_a_key_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SigningKeyError, match="hexadecimal"):
        SealKey.from_text(text)


def test_anchors_read_as_they_were_written(tmp_path: Path) -> None:
    anchors = (Anchor(namespace="n", entries=3, head="a" * 64),)
    path = tmp_path / "anchors.json"
    path.write_text(anchors_text(anchors))
    assert read_anchors(path) == anchors
    for text in ("", "[{}]", '[{"namespace": "n", "entries": 0, "head": ""}]'):
        path.write_text(text)
        with pytest.raises(SpecError, match="no anchors"):
            read_anchors(path)
    with pytest.raises(SpecError, match="cannot be read"):
        read_anchors(tmp_path / "nowhere")
