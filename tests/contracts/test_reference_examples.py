"""Every public name of Python says what it takes and raises, and has an example that runs.

The names are those of the site's page "Python". Its examples go on from the session that the page
begins with: one fit of the embedded model, of few steps, and one gateway in memory.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pydantic import BaseModel

import taciturn
from support.fake_gateway import FOUND, TOKEN, URL, FakeApi, dataset, exported
from support.hub_server import TOKEN as HUB_TOKEN
from support.hub_server import serving
from support.reference import reference
from taciturn.certificate.keygen import write_key
from taciturn.llm import LLM
from taciturn.sdk import client as client_module
from taciturn.sdk.transport import Patience, Transport
from taciturn.wire.datasets import DatasetState

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Examples):$", re.MULTILINE)
# A quantity whose name says its unit says it in words, too.
_UNITS = {"_s": "second", "_minutes": "minute", "_bytes": "byte", "_days": "day"}
_CHARGING = {"fit", "evaluate", "downstream"}


PAGE = reference()
CLASSES = [*PAGE.python_names(), *PAGE.CLIENT_OBJECTS, *PAGE.TRAINER_NAMES]


def resolve(name: str) -> Any:
    """Return what a name with its module stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that a class documents, `__init__` where it has a docstring."""
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, classmethod) else value
        if inspect.isfunction(function) and function.__name__ != name:
            continue  # another name for the same
        if isinstance(function, property) or inspect.isfunction(function):
            documented = name == "__init__" and not dataclasses.is_dataclass(kind)
            if not name.startswith("_") or (documented and function.__doc__):
                yield name, function


def documented() -> list[tuple[str, Any]]:
    """Every public name of the page, with what it stands for."""
    names: list[tuple[str, Any]] = []
    for name in CLASSES:
        kind = resolve(name)
        names.append((name.rpartition(".")[2], kind))
        if inspect.isclass(kind):
            names += [(f"{kind.__name__}.{key}", value) for key, value in public_members(kind)]
    return names


def sections(value: Any) -> dict[str, str]:
    """Return the parts of a docstring by their headings; the text before them has none."""
    parts = _SECTION.split(inspect.getdoc(value) or "")
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments(value: Any) -> list[str]:
    """Return the names that a docstring has to describe: of arguments, or of fields."""
    if inspect.isclass(value):
        if issubclass(value, BaseModel):
            return list(value.model_fields)
        return [field.name for field in dataclasses.fields(value)] if _is_data(value) else []
    if isinstance(value, property):
        return []
    names = list(inspect.signature(value).parameters)
    unnamed = ("self", "cls", "_", "__")
    return [name for name in names if name not in unnamed]


def _is_data(kind: type) -> bool:
    return dataclasses.is_dataclass(kind)


def problems(name: str, value: Any, *, raises: bool) -> Iterator[str]:
    """What a name's docstring lacks.

    Args:
        raises: its class says what all of its methods raise.
    """
    parts = sections(value)
    described = parts.get("Args", "") + parts.get("Attributes", "")
    for argument in arguments(value):
        line = re.search(rf"^ *(?:\w+, )*{argument}(?:, \w+)*: (.+)$", described, re.MULTILINE)
        if line is None:
            yield f"{name}: says nothing of {argument}"
            continue
        for suffix, unit in _UNITS.items():
            if argument.endswith(suffix) and unit not in line[1]:
                yield f"{name}: {argument} does not say its unit, {unit}s"
    if arguments(value) and not inspect.isclass(value) and "Raises" not in parts and not raises:
        yield f"{name}: says nothing of errors"
    if ">>> " not in parts.get("Examples", ""):
        yield f"{name}: has no example"


def all_problems() -> Iterator[str]:
    """What the page's docstrings lack."""
    for name in CLASSES:
        kind = resolve(name)
        raises = "Raises" in sections(kind)
        yield from problems(kind.__name__, kind, raises=raises)
        for key, value in public_members(kind) if inspect.isclass(kind) else ():
            yield from problems(f"{kind.__name__}.{key}", value, raises=raises)


def test_every_public_name_is_described() -> None:
    assert list(all_problems()) == []


def test_the_page_has_every_public_class() -> None:
    page = PAGE.python()
    assert [name for name in CLASSES if f"::: {name}\n" not in page] == []
    assert PAGE.SESSION in page


@pytest.mark.parametrize(
    ("docstring", "problem"),
    [
        ("Do it.", "says nothing of wait_s"),
        ("Do it.\n\nArgs:\n    wait_s: how long.", "does not say its unit"),
        ("Do it.\n\nArgs:\n    wait_s: seconds.", "says nothing of errors"),
        ("Do it.\n\nRaises:\n    ValueError: no.", "has no example"),
    ],
)
def test_planted_omission_is_caught(docstring: str, problem: str) -> None:
    def method(wait_s: float) -> None: ...

    method.__doc__ = docstring
    assert any(problem in line for line in problems("method", method, raises=False))


def examples() -> list[tuple[str, str]]:
    """Every docstring of the page that has an example, by its name."""
    texts = [(name, inspect.getdoc(value) or "") for name, value in documented()]
    return [(name, text) for name, text in texts if ">>> " in text]


class Session:
    """The session that the page begins with: its model is fitted once, its gateway always new."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._client, self._model = PAGE.SESSION.split("\n\nevents", 1)
        self._fake = FakeApi(exports=[exported(1, "0" * 64)])
        waiting = {"state": DatasetState.UNCONFIRMED, "columns": None, "found": FOUND}
        view = dataset("unconfirmed").model_copy(update=waiting)
        self._fake.datasets["unconfirmed"] = view
        patch.setattr(client_module, "Transport", self._connect)
        patch.setattr(LLM, "fit", _briefly(LLM.fit))
        self._fitted: dict[str, Any] = {}
        self._trained: dict[str, Any] = {}
        self._connected: dict[str, Any] = {}
        exec(self._client, self._connected)  # noqa: S102
        self._state = {name: copy.copy(value) for name, value in vars(self._fake).items()}

    def names(self, example: str) -> dict[str, Any]:
        """Return what an example begins with; the model is fitted for the first that needs it."""
        for name, value in self._state.items():
            setattr(self._fake, name, value if name == "app" else copy.copy(value))
        names = dict(self._connected)
        names |= {name: copy.copy(names[name]) for name in ("job", "remote")}  # views change
        if "close()" in example:
            names["client"] = taciturn.Client(URL, TOKEN)
        if re.search(r"\b(?:model|events|fitted)\b", example):
            if not self._fitted:
                exec(f"import taciturn\nevents{self._model}", self._fitted)  # noqa: S102
            names.update(self._fitted)
        if re.search(r"\b(?:trainer|DPTrainer|PrivacyArguments)\b", example):
            if not self._trained:
                exec(PAGE.TRAINER_SESSION, self._trained)  # noqa: S102
            names.update(self._trained)
        return names

    def _connect(self, url: str, token: str, **_: Any) -> Transport:
        """Connect a client to the gateway in memory, whatever its address and token."""
        haste = Patience(attempts=3, first_wait_s=0.0, longest_wait_s=0.0)
        return Transport(URL, TOKEN, patience=haste, http=self._fake.http())


def _briefly(fit: Any) -> Any:
    """Return `LLM.fit` with three steps of a small adapter, for rows that are here."""

    def brief(model: LLM, data: Any, **fields: Any) -> Any:
        short = {"steps": 3, "batch_size": 4, "max_tokens": 24, "method": "lora", "r": 1}
        short["microbatch_tokens"] = 48
        return fit(model, data, **{**(short if isinstance(data, str) else {}), **fields})

    return brief


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The session, in a folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("session")
    _write_files(folder)
    with pytest.MonkeyPatch.context() as patch, serving() as hub:
        patch.chdir(folder)
        patch.setenv("HF_TOKEN", HUB_TOKEN)
        _use_hub(patch, hub.url)
        yield Session(patch)


def _write_files(folder: Path) -> None:
    """Private notes of 20 patients, public ones, some with labels, and a key to sign with."""
    rows = [(f"p{i // 2}", f"The patient has had a cough for {i} days.") for i in range(40)]
    labels = ("cough", "fever")
    tables: dict[str, list[tuple[str, ...]]] = {
        "notes.csv": [("patient_id", "text"), *rows],
        "public.csv": [("patient_id", "text"), *((f"q{i}", f"A fever, {i}.") for i in range(12))],
        "labelled.csv": [("label", "text"), *((labels[i % 2], f"Note {i}.") for i in range(8))],
    }
    for name, table in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(table)
    write_key(folder / "key", name="owner", valid_from=datetime.now(UTC), days=2, password=None)


def _use_hub(patch: pytest.MonkeyPatch, url: str) -> None:
    place = "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + place)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "text"), examples(), ids=[name for name, _ in examples()])
def test_example_runs(name: str, text: str, session: Session) -> None:
    test = doctest.DocTestParser().get_doctest(text, session.names(text), name, name, 0)
    lines: list[str] = []
    doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=lines.append)
    assert not lines, "".join(lines)
