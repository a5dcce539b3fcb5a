"""A place where nothing can be written is refused before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taciturn.data.filesystem import appearing_at_once, check_output_file, check_output_folder
from taciturn.errors import OutputError, SpecError, TaciturnError
from taciturn.llm import LLM

WAYS = [
    "file",
    "no UTF-8",
    "below a file",
    "link to nothing",
    "below such a link",
    "name",
    "null",
    "no right",
]


@pytest.fixture(params=WAYS)
def bad(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file.json").write_text("kept")
    (tmp_path / "link.json").symlink_to(tmp_path / "gone" / "gone")
    if request.param == "no right":
        monkeypatch.setattr(os, "access", lambda *_: False)
    return {
        "file": tmp_path / "file.json",
        "below a file": tmp_path / "file.json" / "x.json",
        "link to nothing": tmp_path / "link.json",
        "below such a link": tmp_path / "link.json" / "x.json",
        "name": tmp_path / ("n" * 300 + ".json"),
        "null": tmp_path / "a\0b.json",
        "no UTF-8": tmp_path / os.fsdecode(b"caf\xe9.json"),
        "no right": tmp_path / "new.json",
    }[request.param]


@pytest.mark.parametrize("check", [check_output_folder, lambda path: check_output_file(path)])
def test_what_is_in_the_way_is_said(
    bad: Path, check: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    if "no UTF-8" in request.node.name and check is not check_output_folder:
        return  # a file like any other
    with pytest.raises(OutputError, match=r"choose another|remove it"):
        check(bad)


def test_before_a_model_is_loaded(bad: Path, tmp_path: Path) -> None:
    """Of anything that writes. The base is not there: it is not even looked for."""
    before = sorted(tmp_path.iterdir())
    base: Any = LLM("/no/such/model")
    for attempt in (
        lambda: base.fit(["a"], target_epsilon=8, output=bad),
        lambda: base.synthesize(1, output=bad),
        lambda: base.extract("a secret", output=bad.with_suffix(".txt")),
    ):
        with pytest.raises((OutputError, SpecError), match=r"choose|remove it"):
            attempt()
    assert sorted(tmp_path.iterdir()) == before


def test_places_that_will_do(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    check_output_folder(tmp_path)
    check_output_file(tmp_path / "a.json", ".json")
    (tmp_path / "there.jsonl").touch()
    check_output_file(tmp_path / "there.jsonl", replace=True)
    for path, message in (
        (tmp_path / "a.txt", r"must end in \.json; choose for example result\.json"),
        (tmp_path / "no" / "a.json", "is not there; create it"),
    ):
        with pytest.raises(TaciturnError, match=message):
            check_output_file(path, ".json")
    with pytest.raises(OutputError, match="already exists"):
        check_output_file(tmp_path, replace=True)
    # Bytes that are no UTF-8 are a name like any other.
    name = os.fsdecode(b"caf\xe9.json")
    check_output_file(tmp_path / name, ".json")
    with appearing_at_once(tmp_path / name) as partial:
        partial.write_text("x", encoding="utf-8")
    assert os.fsencode(tmp_path / name) in [os.fsencode(path) for path in tmp_path.iterdir()]


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before", encoding="utf-8")

    def half() -> None:
        with appearing_at_once(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"No space left.*nothing was left"):
        half()
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
    assert path.read_text(encoding="utf-8") == "before"
