"""Results of attacks as JSON files: readable by their owner only, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taciturn.data.filesystem import appearing_at_once


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """Write `result` with mode 0600; raises OutputError, and then nothing was left."""
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with appearing_at_once(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
