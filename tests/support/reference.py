"""The hook of mkdocs that writes the site's reference; it lies outside of every package."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def reference() -> ModuleType:
    """Return the module, loaded once."""
    location = Path(__file__).resolve().parents[2] / "docs" / "site" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", location)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
