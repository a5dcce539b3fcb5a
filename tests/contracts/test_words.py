"""Names are nouns, docstrings open with the thing or the verb, and modules have today's names.

One case per folder of the package, so that a failure says which one it is in.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from messages import texts

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = _ROOT / "src" / "taciturn"
_TESTS = _ROOT / "tests"

# Pronouns, participles and adverbs that say nothing about what a variable holds.
_NO_NOUNS = """
    found each asked said wanted ours theirs mine given told taken kept made seen gone meant chosen
    brought known others whoever whatever everybody somebody nobody these those such done due held
    shown named tried heard sent written drawn put got ran begun ended opened closed waited
    needed allowed refused granted promised believed stated claimed noticed missed met lost
    won wrong here there then whose them they it he she
"""
# Words that leave a reader waiting for what a docstring is about.
_NO_OPENINGS = """
    what who whom whose which whether how why as of by where when that whoever whatever if from to
    for with in on at those these it they
    found asked said wanted given told taken kept made seen meant chosen known shown named sent
    written drawn begun ended opened refused called raised used
    binding checking choosing coming giving issuing keeping loading making reading registering
    saving saying switching taking telling
"""
# Modules that have a plain name now.
_OLD_MODULES = """
    door pulse pace vault sealing leftovers peers together presence siblings duty hub idle texts
    work ending agreement story watching news reaper examination sight visibility moments recency
    port opening serving starting checking observing finishing stopping supervising invented
    ward hospital clinic reception desk
"""
# Keys of what is written for others, and names of the public API.
_FIELDS = {"engine/auditing/extraction.py": {"told"}, "sdk/credentials.py": {"ours"}}
# The privacy kernel stays as it is: its names of today, and its docstrings.
_KERNEL = "engine/privacy"
_KERNEL_NAMES = {
    "engine/privacy/clipping.py": {"everybody", "sent"},
    "engine/privacy/factors.py": {"_kept", "each", "others"},
    "engine/privacy/head.py": {"each", "kept", "made", "put"},
    "engine/privacy/layout.py": {"chosen", "each"},
    "engine/privacy/lifted.py": {"each", "made"},
    "engine/privacy/per_example.py": {"named", "others"},
    "engine/privacy/ranks.py": {"_kept", "drawn", "each", "everybody", "mine", "sent"},
    "engine/privacy/rules.py": {"each"},
    "engine/privacy/verification.py": {"each", "found", "kept", "others", "tried"},
}


def _words(text: str) -> set[str]:
    return set(text.split())


def _rooms(folder: Path) -> list[str]:
    folders = (path for path in folder.iterdir() if any(path.glob("**/*.py")))
    return [".", *sorted(path.name for path in folders)]


def _files(folder: Path, room: str) -> list[Path]:
    return sorted(folder.glob("*.py") if room == "." else (folder / room).rglob("*.py"))


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every (line, name) that a module gives to a variable, an argument or a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name


def _openings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The (line, first word) of every docstring; "by" for one such as "Read by"."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            first, second = [*text.lower().split(), ""][:2]
            passive = second == "by" and first.endswith(("ed", "en", "read"))
            yield node.body[0].lineno, "by" if passive else first.strip(",.:;`'\"")


def _json_keys(tree: ast.AST) -> set[str]:
    """Fields of the values in `wire/`: they are keys of JSON, and stay."""
    return {
        field.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _bad_names(source: str, exempt: Collection[str] = ()) -> list[str]:
    return [
        f"{line}: {name}"
        for line, name in _names(ast.parse(source))
        if name.strip("_") in _words(_NO_NOUNS) and name not in exempt
    ]


def _bad_openings(source: str) -> list[str]:
    return [
        f"{line}: {word}"
        for line, word in _openings(ast.parse(source))
        if word in _words(_NO_OPENINGS)
    ]


@pytest.mark.parametrize("room", _rooms(_PACKAGE))
def test_variables_are_nouns(room: str) -> None:
    problems = []
    for path in _files(_PACKAGE, room):
        place = path.relative_to(_PACKAGE).as_posix()
        exempt = _KERNEL_NAMES.get(place, set()) | _FIELDS.get(place, set())
        source = path.read_text("utf-8")
        if place.startswith("wire/"):
            exempt |= _json_keys(ast.parse(source))
        problems += [f"{place}:{name}" for name in _bad_names(source, exempt)]
    assert not problems, "name each of these for what it holds"


@pytest.mark.parametrize("room", _rooms(_PACKAGE))
def test_docstrings_open_with_the_thing_or_the_verb(room: str) -> None:
    problems = []
    for path in _files(_PACKAGE, room):
        place = path.relative_to(_PACKAGE).as_posix()
        if not place.startswith(f"{_KERNEL}/"):
            problems += [f"{place}:{word}" for word in _bad_openings(path.read_text("utf-8"))]
    assert not problems, (
        'open with the thing or the verb: "Return ...", "True if ...", "Rows of ..."'
    )


@pytest.mark.parametrize(
    ("folder", "room"),
    [(folder, room) for folder in (_PACKAGE, _TESTS) for room in _rooms(folder)],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_modules_have_names_of_today(folder: Path, room: str) -> None:
    paths = [path.relative_to(_ROOT).as_posix() for path in _files(folder, room) if _is_old(path)]
    assert not paths, "these modules have names that say too little"


def _is_old(path: Path) -> bool:
    return path.stem.removeprefix("test_").removesuffix("_mutants") in _words(_OLD_MODULES)


def test_exempt_names_are_those_of_today() -> None:
    """An exemption that nothing needs any more goes."""
    for place, names in (_KERNEL_NAMES | _FIELDS).items():
        source = (_PACKAGE / place).read_text("utf-8")
        assert names <= {name for _, name in _names(ast.parse(source))}, place


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "for each in rows: pass",
        "def _kept(): ...",
        "lambda asked: 1",
        "[said for said in x]",
        "with f() as opened: pass",
        "class A:\n    told: int",
    ],
)
def test_planted_name_is_caught(source: str) -> None:
    assert _bad_names(source)


@pytest.mark.parametrize(
    "word", ["What", "Whether", "Given", "As", "`Where`,", "Read by", "Saving"]
)
def test_planted_opening_is_caught(word: str) -> None:
    assert _bad_openings(f'def f():\n    """{word} it is."""')
    assert not _bad_openings(f'def f():\n    """Return it, {word}."""')


def test_messages_for_people_are_listed(tmp_path: Path) -> None:
    module = tmp_path / "a.py"
    module.write_text(
        "def f(x: int) -> None:\n"
        "    raise SpecError(f'x={x:g} must be ' 'above 0' if x else 'x is missing')\n"
        "def g() -> None: option(help='Number of steps.', name='not a message')\n",
        encoding="utf-8",
    )
    expected = [(2, "x={x} must be above 0"), (2, "x is missing"), (3, "Number of steps.")]
    assert list(texts(module)) == expected


def test_planted_module_is_caught() -> None:
    assert _is_old(Path("a/duty.py"))
    assert _is_old(Path("a/test_vault_mutants.py"))
    assert not _is_old(Path("a/leader.py"))
