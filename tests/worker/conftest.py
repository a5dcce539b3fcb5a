"""Base model and rows of the jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from taciturn.wire.worker import BaseModelFacts
from worker.jobs import facts, notes, write


@pytest.fixture(scope="session")
def base(tiny_llama: Path) -> BaseModelFacts:
    """What a gateway knows of a tiny model."""
    return facts(str(tiny_llama))


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of invented notes."""
    return write(notes(), tmp_path_factory.mktemp("rows") / "notes.jsonl")
