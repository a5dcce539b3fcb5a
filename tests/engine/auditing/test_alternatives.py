"""The space of a template: its size, what is in it, and what cannot be one."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.embedded.alternatives import alternative_lists
from taciturn.engine.auditing.alternatives import AlternativeSpace
from taciturn.errors import SpecError

MARK = "zyxwvut"
TWO = "{severity} form of {disease}"
LISTS = {"severity": ["a mild", "a severe"], "disease": ["asthma", "gout", "asthma"]}


def test_every_combination_once() -> None:
    space = AlternativeSpace.of(TWO, LISTS, 100)
    assert space.size == 4
    assert sorted(space.texts()) == [
        "a mild form of asthma",
        "a mild form of gout",
        "a severe form of asthma",
        "a severe form of gout",
    ]
    assert all(text in space for text in space.texts())
    for other in ("a mild form of", "a mild form of asthma.", "mild form of gout", ""):
        assert other not in space


def test_texts_spelled_twice_count_once() -> None:
    space = AlternativeSpace.of("{a}{b}", {"a": ["x", "xx"], "b": ["x", "xx"]}, 100)
    assert space.size == 3
    assert "xxx" in space


def test_white_space_in_front_does_not_count() -> None:
    space = AlternativeSpace.of("  {a} b", {"a": [" x", "y"]}, 100)
    assert sorted(space.texts()) == ["x b", "y b"]
    assert "x" in AlternativeSpace.of(None, [" x", "y"], 100)


def test_braces_and_one_list() -> None:
    space = AlternativeSpace.of("{{{a}}}", {"a": ["1", "2"]}, 100)
    assert "{1}" in space
    whole = AlternativeSpace.of(None, ["gout", "asthma"], 100)
    assert (whole.size, "gout" in whole) == (2, True)


def test_named_lists_and_files(tmp_path: Path) -> None:
    diseases = AlternativeSpace.of("{disease}", {"disease": "diseases"}, 1000)
    assert diseases.size == len(alternative_lists()["diseases"])
    path = tmp_path / "list.txt"
    path.write_text("gout\n\n asthma \n", encoding="utf-8")
    assert sorted(AlternativeSpace.of(None, str(path), 100).texts()) == ["asthma", "gout"]


def test_a_space_too_large_to_enumerate() -> None:
    fields = [f"d{i}" for i in range(9)]
    template = "".join(f"{{{field}}}" for field in fields)
    space = AlternativeSpace.of(template, dict.fromkeys(fields, "digits"), 1000)
    assert space.size == 10**9
    assert "271828182" in space
    assert "27182818" not in space
    drawn = space.draw(500, Random(0))
    assert len(set(drawn)) == 500
    assert all(text in space for text in drawn)
    assert drawn == space.draw(500, Random(0))
    assert {text[0] for text in drawn} == set("0123456789")


def test_drawing_ends_where_many_combinations_spell_the_same() -> None:
    runs = {f"f{i}": ["x", "xx"] for i in range(12)}
    space = AlternativeSpace.of("".join(f"{{{field}}}" for field in runs), runs, 100)
    assert space.size == 4096
    assert len(space.draw(100, Random(0))) <= 13


@given(
    st.lists(st.lists(st.text("ab", max_size=3), min_size=1, max_size=3), min_size=1, max_size=4),
    st.text("abc", max_size=8),
)
def test_membership_is_that_of_the_enumerated_set(lists: list[list[str]], text: str) -> None:
    space = AlternativeSpace(tuple(tuple(values) for values in lists), 0)
    assert (text in space) == (text in set(space.texts()))


@pytest.mark.parametrize(
    ("template", "alternatives", "message"),
    [
        ("no field", {}, "names no field"),
        ("{a} {a}", {"a": ["1", "2"]}, "twice"),
        ("{a} {b}", {"a": ["1", "2"]}, r"without alternatives: \['b'\]"),
        ("{a}", {"a": ["1", "2"], "c": ["3"]}, r"without a field: \['c'\]"),
        ("{a", {"a": ["1", "2"]}, "not well-formed"),
        ("{a:>3}", {"a": ["1", "2"]}, "take no format"),
        ("{a!r}", {"a": ["1", "2"]}, "take no format"),
        ("{a}", {"a": []}, "is empty"),
        ("{a}", {"a": [MARK, MARK]}, r"has 1 text"),
        ("{a}", [MARK], "for each of its fields"),
        (None, {"a": [MARK, "2"]}, "need a template"),
        ("{a}", {"a": MARK}, "embedded are diseases"),
    ],
)
def test_what_is_no_space(template: str | None, alternatives: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        AlternativeSpace.of(template, alternatives, 100)
    assert MARK not in str(caught.value)


def test_a_secret_outside_is_refused_with_the_size() -> None:
    space = AlternativeSpace.of(TWO, LISTS, 100)
    space.check("a mild form of gout")
    with pytest.raises(SpecError, match=r"the 4 texts .* add its value") as caught:
        space.check(f"a mild form of {MARK}")
    assert MARK not in str(caught.value)
    assert MARK not in repr(AlternativeSpace.of(None, [MARK, "x"], 100))
