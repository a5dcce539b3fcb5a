"""A text ends before its first stop, in one piece or in many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.server.inference.stop_sequences import Stopper, cut

SHORT = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", [], ("one two", False)),
        ("one two", ["two", "ne"], ("o", True)),
        ("one", ["one"], ("", True)),
        ("one", ["x"], ("one", False)),
    ],
)
def test_cut(text: str, stops: list[str], expected: tuple[str, bool]) -> None:
    assert cut(text, stops) == expected


@given(pieces=st.lists(SHORT, max_size=6), stops=STOPS)
def test_pieces_give_the_same_as_the_whole(pieces: list[str], stops: list[str]) -> None:
    stopper = Stopper(stops)
    shown = [stopper.feed(piece) for piece in pieces]
    assert ("".join([*shown, stopper.end()]), stopper.stopped) == cut("".join(pieces), stops)
