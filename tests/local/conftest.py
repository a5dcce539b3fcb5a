"""A fitted folder, and a key that signs for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from taciturn.certificate.clock import now
from taciturn.certificate.keygen import KeyFiles, write_key
from taciturn.llm import LLM


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TACITURN_SIGNING_KEY", raising=False)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    folder = tmp_path_factory.mktemp("key")
    return write_key(folder / "k", name="me", valid_from=now(), days=2, password=None)


@pytest.fixture(scope="module")
def original(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
    key: KeyFiles,
) -> Path:
    """A fitted folder: of the module's `rows()`, by its settings `QUICK`."""
    rows, quick = request.module.rows(), request.module.QUICK
    output = tmp_path_factory.mktemp("fit") / "out"
    LLM(str(tiny_llama)).fit(rows, output=output, signing_key=str(key.private), **quick)
    return output


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of a fitted folder, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "out"))
