"""Every code block of the documents is run by a test, checked against the code, or says why not.

A comment before a block says one of two things: the test that runs it (`<!-- run: tests/... -->`),
or the reason why none does (`<!-- not run: ... -->`). Without one, all of the block is checked
here: commands by the command line's own parser, calls by curl against OpenAPI, job files, settings
and JSON by the types that read them. What is not run is checked as well, as far as it is ours.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from pydantic_settings import SettingsError

import taciturn
from support.code_blocks import BLOCK, Block, blocks
from support.reference import reference
from taciturn.cli.main import app
from taciturn.server.fine_tuning.records import Records
from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.server.problems import ProblemError
from taciturn.server.settings import Settings
from taciturn.spec import FitSpec, JobSpec, SampleSpec
from taciturn.spec.jobs import ExtractJobSpec

ROOT = Path(__file__).resolve().parents[2]
# The changelog tells of commands that have gone.
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")}
    - {ROOT / "CHANGELOG.md"}
)
# What a program has printed, and pictures that are written down: no code.
NO_CODE = {"text", "mermaid"}
# README's first screen has no comments: a test that runs a block, or the reason why not.
README = {
    "import taciturn": "run: tests/e2e/test_page_code.py",
    "client = taciturn.Client": "not run: it needs a gateway",
}

_INLINE = re.compile(r"`(taciturn [a-z][^`\n]*)`")
_TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
_COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S* )*(?:make|taciturn)(?: |$)")
_SETTING = re.compile(r"^(?:export )?TACITURN_(\w+)=(.*)$", re.MULTILINE)
_METHODS = {"fit": FitSpec, "sample": SampleSpec}
# Arguments of the facade that are no fields of a spec.
_FACADE = {"data", "show_private", "output", "resume", "progress", "wait", "signing_key", "name"}
_FACADE |= {"callbacks", "report_to"}
_OBJECTS: dict[str, type] = {"model": taciturn.LLM, "client": taciturn.Client}
# A command that the parser refuses; its module differs from one version of typer to the next.
_USAGE: Any = typer.BadParameter.__base__
_CHECKED = re.compile(
    r"(?:make|taciturn|cd|export TACITURN_\w+=\S*)\b|curl (?=[\s\S]*\$TACITURN_URL/)"
)


def treatment_problems(block: Block, page: str) -> Iterator[str]:
    """A block that nothing runs or checks and that does not say why."""
    comment, _, words = block.comment.partition(": ")
    if page == "README.md" and not block.comment:
        start = next((start for start in README if block.code.startswith(start)), "")
        comment, _, words = README.get(start, "").partition(": ")
    if comment == "not run":
        if len(words.split()) < 3:
            yield f"{_first(block)}: say why it is not run"
    elif comment in ("run", "background"):
        test = ROOT / (words or "tests/e2e/test_start_pages.py")
        if not test.is_file():
            yield f"{_first(block)}: {test.name} is no test"
        elif Path(page).name not in test.read_text(encoding="utf-8"):
            yield f"{_first(block)}: {test.name} does not read {page}"
    elif block.language not in NO_CODE and not _is_checked(block):
        yield f"{_first(block)}: nothing runs or checks it; say why, or which test does"


def _first(block: Block) -> str:
    return block.code.strip().partition("\n")[0]


def _is_checked(block: Block) -> bool:
    """Return whether the checks below read all of a block, or it is what a program has printed."""
    if block.language in ("sh", "bash", "console"):
        return all(_CHECKED.match(line) for line in _lines(block.code))
    if block.language == "":
        lines = list(_lines(block.code))
        commands = [line for line in lines if _CHECKED.match(line)]
        return not commands or commands == lines
    if block.language == "yaml":
        return _yaml_type(yaml.safe_load(block.code)) is not None
    if block.language == "ini":
        return not _SETTING.sub("", block.code).strip()
    return block.language == "json"


def _lines(code: str) -> Iterator[str]:
    """Each command of a shell block; one of several lines, or with JSON over several, is one."""
    rest = ""
    for line in code.replace("\\\n", " ").splitlines():
        rest = f"{rest}\n{line}" if rest else line
        try:
            words = shlex.split(rest, comments=True)
        except ValueError:
            continue  # a quoted text goes on in the next line
        if words:
            yield rest.strip().removeprefix("$ ")
        rest = ""
    if rest:
        yield rest


def python_problems(code: str) -> Iterator[str]:
    """Names of taciturn and arguments of fit and sample that do not exist."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _import_problems(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            if owner == "taciturn" and node.attr not in taciturn.__all__:
                yield f"taciturn.{node.attr} is not a public name"
            elif owner in _OBJECTS and "OpenAI" not in code and not _has(owner, node.attr):
                yield f"{owner}.{node.attr} does not exist"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            spec = _METHODS.get(node.func.attr)
            known = set(spec.model_fields) | _FACADE if spec else set()
            for keyword in node.keywords if spec else ():
                if keyword.arg is not None and keyword.arg not in known:
                    yield f"{node.func.attr}({keyword.arg}=...) is not an argument"


def _import_problems(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    names = [alias.name for alias in node.names]
    modules = names if isinstance(node, ast.Import) else [node.module or ""]
    for module in modules:
        if module.partition(".")[0] != "taciturn":
            continue
        if importlib.util.find_spec(module) is None:
            yield f"{module} is not a module"
        elif isinstance(node, ast.ImportFrom):
            public = importlib.import_module(module).__all__
            for name in names:
                if name not in public:
                    yield f"{module}.{name} is not a public name"


def _has(owner: str, name: str) -> bool:
    """Return whether objects of a class have this name, as a method or made when they begin."""
    kind = _OBJECTS[owner]
    source = Path(importlib.import_module(kind.__module__).__file__ or "").read_text("utf-8")
    return hasattr(kind, name) or f"self.{name} = " in source


def shell_problems(code: str) -> Iterator[str]:
    """Make targets, taciturn commands and flags that do not exist, and calls that are refused."""
    for line in _lines(code):
        if not _COMMAND.match(line):
            continue  # what a command prints
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words[:1] == ["make"]:
            targets = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            for unknown in sorted(targets - make_targets()):
                yield f"make {unknown}: no such target"
        elif words[:1] == ["taciturn"]:
            yield from command_problems(words[1:])
    yield from setting_problems(code)
    yield from rest_problems(code)


def command_problems(words: list[str], *, whole: bool = True) -> Iterator[str]:
    """What the command line's own parser says of a command.

    Args:
        whole: its arguments are all there; if not, only what is there has to be right.
    """
    command, path, rest = typer.main.get_command(app), "taciturn", list(words)
    while rest and rest[0] in (commands := getattr(command, "commands", {})):
        path = f"{path} {rest[0]}"
        command = commands[rest.pop(0)]
    if getattr(command, "commands", {}) and rest and not rest[0].startswith("-"):
        yield f"{path} {rest[0]}: no such command"
        return
    try:
        command.make_context(path, rest)
    except _USAGE as error:
        is_part = not whole and (
            "issing" in type(error).__name__ or "requires an arg" in str(error)
        )
        if not is_part and type(error).__name__ != "NoArgsIsHelpError":
            yield f"{path}: {error.format_message()}"
    except (SystemExit, typer.Exit):
        pass  # --help and --version


def inline_problems(text: str) -> Iterator[str]:
    """Commands within a sentence that do not exist, or have options that do not."""
    for command in _INLINE.findall(BLOCK.sub("", text)):
        yield from command_problems(shlex.split(command)[1:], whole=False)


def setting_problems(code: str) -> Iterator[str]:
    """Settings of a gateway that do not exist, or that it would refuse."""
    values = {}
    for name, value in _SETTING.findall(code):
        if name.lower() in Settings.model_fields:
            value = value.replace("$PWD", "/srv")
            is_shell = "export TACITURN_" in code
            values[f"TACITURN_{name}"] = "".join(shlex.split(value)) if is_shell else value
        elif not name.startswith("TEST_") and f"TACITURN_{name}" not in sources():
            yield f"TACITURN_{name} is not a setting"
    with patch.dict(os.environ, values, clear=True):
        try:
            Settings()
        except (ValueError, SettingsError) as error:
            yield str(error)


@functools.cache
def sources() -> str:
    """Return the text of all modules of the package."""
    package = ROOT / "src" / "taciturn"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))


@functools.cache
def make_targets() -> frozenset[str]:
    """Return what `make` can make."""
    return frozenset(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))


def rest_problems(code: str) -> Iterator[str]:
    """Calls by curl that a gateway does not have, and bodies that it would refuse."""
    for call in re.split(r"^(?=curl )", code, flags=re.MULTILINE)[1:]:
        words = shlex.split(call)
        address = next((word for word in words if word.startswith("$TACITURN_URL")), None)
        if address is None:
            continue  # another server's
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
    document: dict[str, Any] = reference().openapi()
    return document


def yaml_problems(code: str) -> Iterator[str]:
    """What a command refuses of its file."""
    fields = yaml.safe_load(code)
    kind = _yaml_type(fields)
    try:
        if kind is ExtractJobSpec:
            kind.model_validate({"model": "out", **fields})
        elif kind is not None:
            kind.model_validate(fields)
    except ValidationError as error:
        for problem in error.errors():
            yield f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


def _yaml_type(fields: Any) -> type[JobSpec | ExtractJobSpec] | None:
    """Return what reads a file of YAML: a fit, or an attack."""
    if isinstance(fields, dict) and {"model", "data"} <= fields.keys():
        return JobSpec
    if isinstance(fields, dict) and {"secret", "prefix"} <= fields.keys():
        return ExtractJobSpec
    return None


def json_problems(code: str) -> Iterator[str]:
    """What the gateway refuses of a pool of machines, or of a file that is uploaded."""
    try:
        if code.startswith('{"name"'):
            Pool.model_validate(json.loads(code))
        else:
            list(Records(BytesIO(code.encode()), {"customer"}, "customer"))
    except (ValueError, ProblemError) as error:
        yield str(error)


CHECKS = {
    "": shell_problems,
    "python": python_problems,
    "sh": shell_problems,
    "console": shell_problems,
    "bash": shell_problems,
    "yaml": yaml_problems,
    "ini": setting_problems,
    "json": json_problems,
}


def problems(text: str, page: str = "page.md") -> list[str]:
    """Everything that the code of a page has wrong."""
    lines = list(inline_problems(text))
    for block in blocks(text):
        lines += treatment_problems(block, page)
        lines += CHECKS[block.language](block.code) if block.language in CHECKS else ()
    return lines


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs_or_is_checked_or_says_why_not(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) == []


def test_no_block_is_overlooked() -> None:
    """Fences come in pairs that are seen, and code is in fences alone."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks(text)), path
        rest = BLOCK.sub("", text)
        indented = re.findall(r"\n\n(    (?! |[-*]|\d+\.|=== |!\[)[a-z_]+ .*)", rest)
        code = [
            line
            for line in indented
            if re.match(r" +(?:\w+=\S+ )*(?:python|pytest|make|taciturn) ", line)
        ]
        assert code == [], path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "<!-- not run: it needs time -->\n```python\ntaciturn.LMM('x')\n```\n",
            "not a public name",
        ),
        (
            "<!-- not run: it needs time -->\n```python\nmodel.fit('x', target_epsilom=3)\n```\n",
            "not an argument",
        ),
        ("```sh\nmake tests\n```\n", "no such target"),
        ("```console\n$ make tests\n```\n", "no such target"),
        ("```\nmake tests  # all\n```\n", "no such target"),
        ("```sh\ntaciturn fitt\n```\n", "no such command"),
        ("```sh\ntaciturn fit --target-epsilom 3\n```\n", "such option"),
        ("```sh\ntaciturn cert verfy out\n```\n", "no such command"),
        ("```sh\ntaciturn cert verify out --trus x\n```\n", "such option"),
        ('=== "Command"\n\n    ```sh\n    taciturn fitt\n    ```\n', "no such command"),
        ('```sh\ncurl "$TACITURN_URL/v1/job"\n```\n', "no such route"),
        ('```sh\ncurl "$TACITURN_URL/v1/jobs?status=x"\n```\n', "no parameter status"),
        (
            """```sh\ncurl "$TACITURN_URL/v1/tokens" --json '{"name": "x", "day": 7}'\n```\n""",
            "'day' was unexpected",
        ),
        ("```yaml\nmodel: a\ndata: b\nepsilom: 3\n```\n", "epsilom: "),
        ("```yaml\nmodel: a\ndata: b\nsteps: many\n```\n", "steps: "),
        ("```sh\ntaciturn fit notes.jsonl\n```\n", "unexpected extra argument"),
        ("```sh\ntaciturn user add\n```\n", "issing argument"),
        ("say `taciturn grant give x`", "no such command"),
        ("say `taciturn serve --chek`", "such option"),
        ("<!-- not run: it needs time -->\n```python\nmodel.fitt()\n```\n", "does not exist"),
        (
            "<!-- not run: it needs time -->\n```python\nfrom taciturn.hf import DPTrianer\n```\n",
            "not a public name",
        ),
        ("```ini\nTACITURN_DATABSE_URL=x\n```\n", "not a setting"),
        ("```ini\nTACITURN_PORT=x\n```\n", "valid integer"),
        ('```json\n{"name": "l4", "gpu": 1}\n```\n', "gpu"),
        ('```json\n{"customer": "c17", "prompt": "a", "answer": "b"}\n```\n', "neither"),
        ("```sh\ncurl http://127.0.0.1:8000/v1/models\n```\n", "nothing runs or checks it"),
        ("```sh\nkubectl get pods\n```\n", "nothing runs or checks it"),
        ("```python\n1 + 1\n```\n", "nothing runs or checks it"),
        ("```yaml\na: 1\n```\n", "nothing runs or checks it"),
        ("```nginx\nserver {}\n```\n", "nothing runs or checks it"),
        ("<!-- not run: slow -->\n```python\n1\n```\n", "say why"),
        ("<!-- run: tests/e2e/nowhere.py -->\n```python\n1\n```\n", "is no test"),
        ("<!-- run: tests/test_llm.py -->\n```python\n1\n```\n", "does not read page.md"),
    ],
)
def test_planted_untruth_is_caught(text: str, problem: str) -> None:
    lines = problems(text)
    assert len(lines) == 1
    assert problem in lines[0]
