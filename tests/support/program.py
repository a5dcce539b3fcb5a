"""Programs of Python that tests run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_python(
    *arguments: Any,
    cwd: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    timeout_s: float = 800,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, and these variables beside those of `environment`."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
