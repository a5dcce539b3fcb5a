"""What the documents say about files, commands, names and fields is true.

Figures are not checked here: each names the command that prints it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import taciturn
from taciturn.spec import FitSpec, JobSpec, SampleSpec

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
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
_COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S* )*(?:make|taciturn) ")
_FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
_GROUPS = {"cert", "ledger", "dataset", "policy", "grant", "job", "approval", "model", "user"}
_GROUPS |= {"token", "incident", "admin", "public-data"}
_METHODS = {"fit": FitSpec, "sample": SampleSpec}
# Arguments of the facade that are no fields of a spec.
_FACADE = {"data", "show_private", "output", "resume", "progress", "wait", "signing_key", "name"}
_FACADE |= {"callbacks", "report_to"}


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


def python_problems(code: str) -> Iterator[str]:
    """Names of taciturn and arguments of fit and sample that do not exist."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "taciturn":
            if node.attr not in taciturn.__all__:
                yield f"taciturn.{node.attr} is not a public name"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            spec = _METHODS.get(node.func.attr)
            known = set(spec.model_fields) | _FACADE if spec else set()
            for keyword in node.keywords if spec else ():
                if keyword.arg is not None and keyword.arg not in known:
                    yield f"{node.func.attr}({keyword.arg}=...) is not an argument"


def shell_problems(code: str) -> Iterator[str]:
    """Make targets, taciturn commands and flags that do not exist."""
    for line in code.replace("\\\n", " ").splitlines():
        if not _COMMAND.match(line):
            continue  # what a command prints
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words[:1] == ["make"]:
            targets = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            for unknown in sorted(targets - make_targets()):
                yield f"make {unknown}: no such target"
        elif words[:1] == ["taciturn"] and len(words) > 1:
            flags = [word.partition("=")[0] for word in words[2:] if _FLAG.match(word)]
            command = " ".join(words[1:3]) if words[1] in _GROUPS else words[1]
            yield from _command_problems(command, flags)

    yield from rest_problems(code)


def rest_problems(code: str) -> Iterator[str]:
    """Calls by curl that a gateway does not have, and bodies that it would refuse."""
    for call in re.split(r"^(?=curl )", code, flags=re.MULTILINE)[1:]:
        words = shlex.split(call)
        address = next(word for word in words if word.startswith("$TACITURN_URL"))
        body = words[words.index("--json") + 1] if "--json" in words else None
        method = (
            words[words.index("-X") + 1] if "-X" in words else "GET" if body is None else "POST"
        )
        path, _, query = address.removeprefix("$TACITURN_URL").partition("?")
        operation = _operation(method, path)
        if operation is None:
            yield f"{method} {path}: no such route"
            continue
        known = {each["name"] for each in operation.get("parameters", ())}
        for name in re.findall(r"(?:^|&)(\w+)=", query):
            if name not in known:
                yield f"{method} {path}: no parameter {name}"
        if body is None:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": rest()["components"]})
        for error in validator.iter_errors(json.loads(body)):
            yield f"{method} {path}: {error.message}"


def _operation(method: str, path: str) -> dict[str, Any] | None:
    """Return what OpenAPI says of a call; of a fixed path before one with a name in it."""
    for template in sorted(rest()["paths"], key=lambda each: each.count("{")):
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
            operation: dict[str, Any] | None = rest()["paths"][template].get(method.lower())
            if operation is not None:
                return operation
    return None


@functools.cache
def rest() -> dict[str, Any]:
    """Return the OpenAPI document, as the site publishes it."""
    location = ROOT / "docs" / "site" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", location)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    document: dict[str, Any] = module.openapi()
    return document


def _command_problems(command: str, flags: list[str]) -> Iterator[str]:
    help_text = "" if command.startswith("-") else help_of(command)
    if help_text is None:
        yield f"taciturn {command}: no such command"
        return
    for flag in flags:
        if flag not in _FLAG.findall(help_text):
            yield f"taciturn {command} {flag}: no such option"


@functools.cache
def make_targets() -> frozenset[str]:
    return frozenset(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))


@functools.cache
def help_of(command: str) -> str | None:
    """What `taciturn COMMAND --help` prints; None if there is no such command."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from taciturn.cli.main import main; main()",
            *command.split(),
            "--help",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout if result.returncode == 0 else None


def yaml_problems(code: str) -> Iterator[str]:
    """Fields of a job file that do not exist."""
    fields = yaml.safe_load(code)
    if isinstance(fields, dict) and {"model", "data"} <= fields.keys():
        for unknown in sorted(fields.keys() - JobSpec.model_fields.keys()):
            yield f"{unknown}: not a field of a job"


CHECKS = {
    "": shell_problems,
    "python": python_problems,
    "sh": shell_problems,
    "console": shell_problems,
    "bash": shell_problems,
    "yaml": yaml_problems,
}


def problems(text: str, folder: Path) -> list[str]:
    """Everything a document says that is not so."""
    found = list(link_problems(text, folder))
    for _, language, code in _BLOCK.findall(text):
        found += CHECKS[language](textwrap.dedent(code)) if language in CHECKS else ()
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_tells_the_truth(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8"), path.parent) == []


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
        ("```python\ntaciturn.LMM('x')\n```\n", "not a public name"),
        ("```python\nmodel.fit('x', target_epsilom=3)\n```\n", "not an argument"),
        ("```sh\nmake tests\n```\n", "no such target"),
        ("```console\n$ make tests\nprinted\n```\n", "no such target"),
        ("```\nA=1 make tests  # all\nmade 'by hand\n```\n", "no such target"),
        ("```sh\ntaciturn fitt\n```\n", "no such command"),
        ("```sh\ntaciturn fit --target-epsilom 3\n```\n", "no such option"),
        ("```sh\ntaciturn cert verfy out\n```\n", "no such command"),
        ("```sh\ntaciturn cert verify out --trus x\n```\n", "no such option"),
        ('=== "Command"\n\n    ```sh\n    taciturn fitt\n    ```\n', "no such command"),
        ('```sh\ncurl "$TACITURN_URL/v1/job"\n```\n', "no such route"),
        ('```sh\ncurl "$TACITURN_URL/v1/jobs?status=x"\n```\n', "no parameter status"),
        (
            """```sh\ncurl "$TACITURN_URL/v1/tokens" --json '{"name": "x", "day": 7}'\n```\n""",
            "'day' was unexpected",
        ),
        ("```yaml\nmodel: a\ndata: b\nepsilom: 3\n```\n", "not a field"),
    ],
)
def test_planted_untruth_is_caught(text: str, problem: str) -> None:
    found = problems(text, ROOT)
    assert len(found) == 1
    assert problem in found[0]
