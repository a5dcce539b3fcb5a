"""Where and with what a benchmark ran: no names of hosts or people."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

_PACKAGES = ("taciturn", "torch", "transformers", "peft", "accelerate", "opacus")
_CPUINFO = Path("/proc/cpuinfo")


def describe(threads: int, memory: str, allocator: str) -> dict[str, str]:
    """Lines for the head of the report."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "memory": f"{memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": str(threads),
        "versions": ", ".join(versions()),
        "malloc (time)": allocator,
        "peak memory by": f"{memory}; malloc as it comes",
    }


def processor() -> str:
    """Return the model of the processor and the number of its cores."""
    return f"{_model()}, {os.cpu_count()} cores"


def _model() -> str:
    if not _CPUINFO.exists():
        return platform.processor() or platform.machine()
    fields = [line.partition(":") for line in _CPUINFO.read_text().splitlines()]
    names = [value.strip() for key, _, value in fields if key.strip() == "model name"]
    return names[0] if names else platform.machine()


def memory_gib() -> float:
    """Return the size of the memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def versions() -> list[str]:
    """Return the installed versions of what a measurement depends on."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return found
