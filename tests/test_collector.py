"""No garbage is collected while what takes seconds is imported."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from support.program import run_python
from taciturn.collector import nothing_collected

# Ends where the first of the modules that take seconds, or load such, would be imported.
STARTING = """
import gc, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "{heavy}":
            print("collects" if gc.isenabled() else "collects nothing", flush=True)
            os._exit(0)

{before}
sys.meta_path.insert(0, Watch())
{start}
"""
STARTS = {
    "engine": (
        "from taciturn.llm import LLM",
        "LLM('taciturn/tiny-medical')._local_model('plan')",
        "torch",
    ),
    "gateway": ("from taciturn.cli import serve", "serve._serve_on(None)", "fastapi"),
    "worker": (
        "from taciturn.worker import __main__ as worker",
        "worker.main()",
        "taciturn.worker.job",
    ),
    "job": ("from taciturn.worker import job", "job._module('fit')", "torch"),
}
"""What is imported before, what starts then, and a module that takes long."""
WORKER = {
    "TACITURN_GATEWAY_URL": "http://127.0.0.1:1",
    "TACITURN_JOB": "job_1",
    "TACITURN_JOB_TOKEN": "token",
    "TACITURN_WORKSPACE": "workspace",
}


@nothing_collected()
def failing(seen: list[bool]) -> None:
    seen.append(gc.isenabled())
    raise ZeroDivisionError


def test_nothing_is_collected_inside() -> None:
    seen: list[bool] = []
    with pytest.raises(ZeroDivisionError):
        failing(seen)
    assert seen == [False]
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with nothing_collected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("name", STARTS)
def test_a_start_collects_nothing(name: str, tmp_path: Path) -> None:
    before, start, heavy = STARTS[name]
    program = STARTING.format(before=before, start=start, heavy=heavy)
    answer = run_python("-c", program, cwd=tmp_path, **WORKER)
    assert answer.stdout == "collects nothing\n", answer.stderr
