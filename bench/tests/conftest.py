"""Tests of what the scripts beside them share, with the fixtures of `tests/`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

pytest_plugins = ["support.fixtures"]
