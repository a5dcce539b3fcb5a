"""Results of attacks as JSON files: readable by their owner only, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taciturn.errors import OutputError, SpecError


def check_result_file(path: Path) -> None:
    """Refuse a place where the file cannot be written, before anything is computed."""
    if path.suffix != ".json":
        raise SpecError(f"output {path} must end in .json; choose for example result.json")
    if path.exists():
        raise OutputError(f"{path} already exists; choose another file or remove it")
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} is not there; create it or choose another output")


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """Write `result` with mode 0600; raises OutputError, and then nothing was left."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; nothing was left") from None
    finally:
        partial.unlink(missing_ok=True)
