"""Text is UTF-8 wherever it is read or written, whatever a machine's locale says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_TEXT = {"read_text", "write_text"}
_OPENING = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"}
_RUNNING = {"run", "Popen", "check_output", "check_call", "call"}
_AS_TEXT = {"text", "universal_newlines"}
# Not text of ours: what they open is bytes, or no file.
_OTHERS = {"os", "webbrowser", "Image", "tarfile", "gzip", "location", "filesystem"}


def _calls(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """What each call is of, and on: `path.open(...)` is ("open", "path", ...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                yield called.attr, ast.unparse(called.value), node
            elif isinstance(called, ast.Name):
                yield called.id, "", node


def _mode(name: str, owner: str, call: ast.Call) -> str | None:
    """The mode of a file that is opened; None if the call opens none."""
    given = [each.value for each in call.keywords if each.arg == "mode"]
    place = (
        0 if name in ("NamedTemporaryFile", "TemporaryFile") or (owner and name == "open") else 1
    )
    given += call.args[place : place + 1]
    modes = [each.value for each in given if isinstance(each, ast.Constant)]
    if name.endswith("TemporaryFile"):
        return str(modes[0]) if modes else "w+b"
    if modes and isinstance(modes[0], str) and set(modes[0]) <= set("rwaxbt+"):
        return modes[0]
    return None if given else "r"


def _without_encoding(source: str) -> Iterator[int]:
    for name, owner, call in _calls(ast.parse(source)):
        named = {each.arg: each.value for each in call.keywords}
        if "encoding" in named:
            continue
        if (
            name in _TEXT and not (name == "write_text" and len(call.args) > 1)
        ) or name == "TextIOWrapper":
            yield call.lineno
        elif name in _OPENING and not (name == "open" and owner in _OTHERS):
            mode = _mode(name, owner, call)
            if mode is not None and "b" not in mode and not _ours(name, owner):
                yield call.lineno
        elif name in _RUNNING and owner == "subprocess" and named.keys() & _AS_TEXT:
            yield call.lineno


def _ours(name: str, owner: str) -> bool:
    """Classes of ours that are made by `open`, and methods of that name."""
    return name == "open" and (owner[:1].isupper() or owner.startswith(("self.", "services.")))


def test_every_text_states_its_encoding(root: Path) -> None:
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in sorted((root / "src").rglob("*.py"))
        for line in _without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ("path.read_text()", 1),
        ("path.read_text(encoding='utf-8')", 0),
        ("(a / 'b').write_text(x)", 1),
        ("open(path)", 1),
        ("open(path, 'rb')", 0),
        ("path.open()", 1),
        ("path.open('w')", 1),
        ("path.open('wb')", 0),
        ("os.fdopen(fd, 'w')", 1),
        ("os.open(path, os.O_RDONLY)", 0),
        ("subprocess.run(x, text=True)", 1),
        ("subprocess.run(x, encoding='utf-8')", 0),
        ("tempfile.NamedTemporaryFile()", 0),
        ("tempfile.NamedTemporaryFile('w')", 1),
        ("Vault.open(url, key)", 0),
    ],
)
def test_the_look_sees(source: str, faults: int) -> None:
    assert len(list(_without_encoding(source))) == faults
