"""No file refers to anything outside of the repository, and every guard of a pitfall exists."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOMS = ("src", "tests", "bench", "docs", "deploy", "examples", ".github", ".devcontainer", ".ci")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".ipynb", ".html", ".css", ".tpl", ".sh"}
NAMELESS = {"Makefile", "Dockerfile", "CODEOWNERS", "run"}

# A number of a list, also where the line ends between the word and the number.
_NUMBERED = re.compile(r"\bpitfalls?[\s#.:]*\d", re.IGNORECASE)
_FILE = re.compile(r"(?<![\w/.{}<>*-])((?:[\w.*-]+/)*[\w*-]+\.(?:py|md))\b(?!\.\w)")
_ABOVE = re.compile(r"(?<![\w/.])(?:\.\./)+[\w./-]+")

_TRAP = re.compile(r"^- \*\*(.+?)\.\*\*(.*?)(?=^- |^#|\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_GUARDS = re.compile(r"Guards?:(.+)", re.DOTALL)


def texts(root: Path) -> Iterator[Path]:
    """Every text file of the repository."""
    yield from sorted(
        path
        for path in [
            *root.iterdir(),
            *(path for room in ROOMS for path in root.glob(f"{room}/**/*")),
        ]
        if path.is_file()
        and (path.suffix in TEXT or path.name in NAMELESS or path.suffix == ".Dockerfile")
        and "__pycache__" not in path.parts
    )


def prose(path: Path) -> list[str]:
    """Comments and docstrings of a Python file; the whole text of any other file."""
    text = path.read_text(encoding="utf-8")
    if not any(pattern.search(text) for pattern in (_NUMBERED, _ABOVE, _FILE)):
        return []
    if path.suffix != ".py":
        return [text]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    docstrings = [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return [*comments, *docstrings]


def outside_references(path: Path, root: Path, names: list[str]) -> Iterator[str]:
    """References of one file to a numbered list or to files that are not in the repository.

    Args:
        names: paths of the repository's files, relative to its root.
    """
    for text in prose(path):
        for match in _NUMBERED.finditer(text):
            yield f"{match.group()!r} cites a list by number; name the failure instead"
        for reference in _ABOVE.findall(text):
            target = (path.parent / reference).resolve()
            if not target.is_relative_to(root.resolve()):
                yield f"{reference} is outside of the repository"
        for reference in _FILE.findall(text) if path.suffix == ".py" else ():
            if not any(fnmatch(f"/{name}", f"*/{reference}") for name in names):
                yield f"{reference} is not in the repository"


def traps(document: str) -> dict[str, list[str]]:
    """Guards of each trap: its title -> tests as `file::test` and names of mutants."""
    return {
        title: [
            " ".join(code.split())
            for guards in _GUARDS.findall(body)
            for code in _CODE.findall(guards)
        ]
        for title, body in _TRAP.findall(document)
    }


def missing_guards(guards: list[str], tests: Path) -> list[str]:
    """Guards that are neither a test function nor a mutant of `tests`."""
    mutants = "".join(path.read_text(encoding="utf-8") for path in tests.glob("mutants/*.py"))
    return [guard for guard in guards if not _is_test(guard, tests) and f'"{guard}"' not in mutants]


def _is_test(guard: str, tests: Path) -> bool:
    file, _, name = guard.partition("::")
    path = tests / file
    return bool(name) and path.is_file() and f"def {name}(" in path.read_text(encoding="utf-8")


def test_no_file_refers_to_anything_outside(root: Path) -> None:
    files = list(texts(root))
    names = [path.relative_to(root).as_posix() for path in files]
    faults = [
        f"{path.relative_to(root)}: {fault}"
        for path in files
        if path != Path(__file__)
        for fault in outside_references(path, root, names)
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('"""An empty draw (PITFALLS 6)."""', "by number"),
        ('"""See PITFALLS\n10."""', "by number"),
        ("# the trap of pitfall #3", "by number"),
        ("# see DESIGN.md", "not in the repository"),
        ('"""As tests/nowhere.py does."""', "not in the repository"),
        ("# python a.py ../elsewhere/rows", "outside of the repository"),
        ('"""As a.py does, and b/*.py."""', None),
        ('name = "nowhere.py"', None),
    ],
)
def test_planted_reference_is_found(text: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    faults = list(outside_references(tmp_path / "a.py", tmp_path, ["src/a.py", "b/c.py"]))
    assert [fault in found for found in faults] == ([True] if fault else []), faults


def test_every_trap_has_guards_that_exist(root: Path) -> None:
    document = (root / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    guards_of = traps(document)
    assert len(guards_of) >= 33
    assert [title for title, guards in guards_of.items() if not guards] == []
    assert {
        title: missing
        for title, guards in guards_of.items()
        if (missing := missing_guards(guards, root / "tests"))
    } == {}
    every_change = _CODE.findall(document.partition("## Mutants")[2])
    assert len(every_change) >= 13
    assert missing_guards(every_change, root / "tests") == []


def test_planted_guard_that_is_missing_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_b() -> None: ...\n", encoding="utf-8")
    (tmp_path / "mutants").mkdir()
    (tmp_path / "mutants" / "mutants.py").write_text('{"no clip": 1}\n', encoding="utf-8")
    document = (
        "- **A trap.** Why.\n  Guards: `test_a.py::test_b`,\n  mutants `no clip`, `no noise`.\n"
    )
    assert traps(document) == {"A trap": ["test_a.py::test_b", "no clip", "no noise"]}
    guards = ["test_a.py::test_b", "no clip", "no noise", "test_a.py::test_c", "test_c.py::test_b"]
    assert missing_guards(guards, tmp_path) == guards[2:]
    assert traps("- **A trap.** Why.\n") == {"A trap": []}
