"""Hub ids where the hub cannot be reached: said at once, and what it gave before is still there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from support.program import run_python

_LOAD = """
import sys
from taciturn.engine.model.load import load_base
from taciturn.errors import ModelNotFoundError
from taciturn.spec import PerformanceSpec

print(type(load_base("somebody/cached", PerformanceSpec()).model).__name__)
for name in ("nobody/nothing", "nobody/nothing/weights.gguf"):
    try:
        load_base(name, PerformanceSpec())
    except ModelNotFoundError as error:
        print(error)
"""


def test_without_network(tiny_llama: Path, tmp_path: Path) -> None:
    """A port that nobody listens on is the hub."""
    revision = "0" * 40
    cached = tmp_path / "models--somebody--cached"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    shutil.copytree(tiny_llama, cached / "snapshots" / revision)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    ran = run_python("-c", _LOAD, environment=environment)
    name, *refusals = ran.stdout.splitlines()
    assert name == "LlamaForCausalLM", ran.stderr
    assert len(refusals) == 2
    for refusal in refusals:
        assert "nor reachable on the hub; check the id, the network" in refusal
    assert "Retry" not in ran.stderr
