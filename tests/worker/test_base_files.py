"""A fitted model's public files are its base's, whatever defaults of generation that came with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from taciturn.engine.model import adapter
from taciturn.engine.model.load import load_base
from taciturn.spec import PerformanceSpec
from taciturn.worker.allowlist import NotReleasableError
from taciturn.worker.base_files import check, keep


@pytest.mark.parametrize(
    "defaults", [{}, {"repetition_penalty": 1.1}, {"do_sample": False, "temperature": 0.6}]
)
def test_defaults_of_generation(tiny_llama: Path, tmp_path: Path, defaults: dict[str, Any]) -> None:
    folder, out, kept = tmp_path / "base", tmp_path / "out", tmp_path / "kept"
    shutil.copytree(tiny_llama, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | defaults))
    base = load_base(str(folder), PerformanceSpec())
    keep(base, kept)
    adapter.save(base.model, base.tokenizer, base.name, out)
    for name in ("generation_config.json", "config.json"):
        check(out / name, kept)
    saved = json.loads((out / "generation_config.json").read_text())
    (out / "generation_config.json").write_text(json.dumps(saved | {"top_k": 77}))
    with pytest.raises(NotReleasableError, match=r"generation_config\.json is not what the base"):
        check(out / "generation_config.json", kept)
