"""Pages: everything that stays is shown once, whatever comes and goes between them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.server.paging import Paging, from_cursor, to_cursor
from taciturn.server.problems import ProblemError

NAMES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1)


def read(rows: set[str], paging: Paging) -> list[str]:
    """What a query with these terms gives."""
    return sorted(row for row in rows if row > paging.name())[: paging.fetch]


@given(st.sets(NAMES), st.sets(NAMES), st.sets(NAMES), st.integers(1, 5))
def test_what_stays_is_shown_once(
    stays: set[str], comes: set[str], goes: set[str], limit: int
) -> None:
    comes, goes = comes - stays, goes - stays
    rows, seen, after = stays | goes, list[str](), None
    for step in range(len(stays | comes | goes) + 2):
        page = Paging(limit, after).page(read(rows, Paging(limit, after)), str, str)
        seen += page.items
        if page.next_cursor is None:
            break
        after = from_cursor(page.next_cursor)
        rows = (stays | comes) if step % 2 else (stays | goes)
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))
    assert stays <= set(seen)


@given(st.lists(st.integers(1, 10**6), unique=True), st.integers(1, 7))
def test_numbers_too(numbers: list[int], limit: int) -> None:
    ordered, seen, after = sorted(numbers), list[int](), None
    while True:
        paging = Paging(limit, after)
        rows = [number for number in ordered if number > paging.number()][: paging.fetch]
        page = paging.page(rows, int, int)
        seen += page.items
        if page.next_cursor is None:
            break
        after = from_cursor(page.next_cursor)
    assert seen == ordered


@given(NAMES | st.integers(0, 2**53 - 1))
def test_a_cursor_is_its_key(key: str | int) -> None:
    assert from_cursor(to_cursor(key)) == key


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with contextlib.suppress(ProblemError):
        assert to_cursor(from_cursor(text)) == text


def test_a_cursor_of_another_list_is_refused() -> None:
    for paging in (Paging(5, 3).name, Paging(5, "a").number):
        with pytest.raises(ProblemError, match="cursor"):
            paging()
