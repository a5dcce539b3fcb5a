"""What the documents say about files, folders, classes and names is true.

Code blocks are checked in `test_blocks.py`, figures in `test_figures.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PACKAGE = ROOT / "src" / "taciturn"
MAP = [ROOT / "ARCHITECTURE.md", *sorted(ROOT.glob("docs/design/*.md"))]
MAP_LIMIT_BYTES = 6 * 1024
EXPECTED = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:src|tests|bench|docs|\.ci)/[\w./*-]*)`")
_SOURCE = re.compile(r"`([\w./]+(?:\.py|/))`")
_CLASS = re.compile(r"`((?:[A-Z][a-z]+){2,})`")
_IDENTIFIER = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+)`")
# A folder of what a fit writes, not of the sources.
_WRITTEN = {"private/"}
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@functools.cache
def made_pages() -> set[Path]:
    """Return the pages and pictures that are made when the site is built (docs/site)."""
    entry = re.compile(r'^    "([\w.-]+)": \w', re.MULTILINE)
    pictures = re.findall(r'"([\w-]+\.svg)":', _read("docs/site/pictures.py"))
    pages = entry.findall(_read("docs/site/reference.py"))
    return {
        *(ROOT / "docs" / "reference" / name for name in pages),
        *(ROOT / "docs" / "understand" / name for name in pictures),
    }


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def link_problems(text: str, folder: Path) -> Iterator[str]:
    """Relative links and paths in backticks that lead nowhere."""
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (folder / file).resolve() if file else None
        if target in made_pages():
            continue  # mkdocs checks those
        if target is not None and not target.exists():
            yield f"link to {link}: no such file"
        elif anchor:
            there = text if target is None else target.read_text(encoding="utf-8")
            if anchor not in {_anchor(heading) for heading in _HEADING.findall(there)}:
                yield f"link to {link}: no such heading"
    for path in _PATH.findall(text):
        if not any(ROOT.glob(path.rstrip("/"))):
            yield f"`{path}` is not in the repository"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def name_problems(text: str) -> Iterator[str]:
    """Modules, folders, classes and identifiers in backticks that the sources do not have."""
    for path in _SOURCE.findall(text):
        if path not in _WRITTEN and not any((base / path).exists() for base in (PACKAGE, ROOT)):
            yield f"`{path}` is not in the sources"
    for name in _CLASS.findall(text):
        if not re.search(rf"^class {name}\b", sources(), re.MULTILINE):
            yield f"`{name}` is not in the sources"
    for name in _IDENTIFIER.findall(text):
        if not re.search(rf"\b{name}\b", sources()):
            yield f"`{name}` is not in the sources"


@functools.cache
def sources() -> str:
    """Return the text of all modules of the package."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_tells_the_truth(path: Path) -> None:
    assert list(link_problems(path.read_text(encoding="utf-8"), path.parent)) == []


@pytest.mark.parametrize("name", EXPECTED)
def test_document_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_first_screen_shows_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:50]
    assert {"make demo", "make test"} <= {
        command for command in ("make demo", "make test") if command in "\n".join(first_screen)
    }


def test_architecture_has_a_line_for_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = {line.split("`")[1].rstrip("/") for line in text.splitlines() if line[:3] == "| `"}
    lines = {name.removesuffix(".py") for name in names}
    rooms = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for folder in ("", "engine", "server")
        for path in (PACKAGE / folder).iterdir()
        if (path / "__init__.py").is_file()
        or (not folder and path.suffix == ".py" and not path.name.startswith("_"))
    }
    assert sorted(rooms - {"engine"} - lines) == []


@pytest.mark.parametrize("path", MAP, ids=lambda path: path.stem)
def test_map_and_its_notes_are_short(path: Path) -> None:
    assert path.stat().st_size <= MAP_LIMIT_BYTES


def test_map_links_to_every_note() -> None:
    links = set(_LINK.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    assert [path.name for path in MAP[1:] if f"docs/design/{path.name}" not in links] == []


@pytest.mark.parametrize("path", MAP, ids=lambda path: path.stem)
def test_map_names_what_is_there(path: Path) -> None:
    assert list(name_problems(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "name", ["engine/privacy/lifting.py", "engine/private/", "LiftedParameters", "clip_and_add"]
)
def test_planted_name_is_caught(name: str) -> None:
    assert list(name_problems(f"read `{name}`")) == [f"`{name}` is not in the sources"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](nowhere.md)", "no such file"),
        ("[a](#nowhere)", "no such heading"),
        ("see `src/taciturn/nowhere.py`", "not in the repository"),
    ],
)
def test_planted_untruth_is_caught(text: str, problem: str) -> None:
    lines = list(link_problems(text, ROOT))
    assert len(lines) == 1
    assert problem in lines[0]
