"""Starts bench/gpu.py in a packed folder, on a machine without a network.

    python3 run.py --minutes 8 --out FOLDER        any options of bench/gpu.py

Unpacks those of the wheels that this Python has no package for; its own are never replaced.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import zipfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_EXPECTED = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "pandas", "pyarrow")


def main() -> None:
    """Unpack, and become the script."""
    packages = _HERE / "packages"
    for wheel in sorted((_HERE / "wheels").glob("*.whl")):
        if not _installed(wheel.name.split("-")[0]):
            with zipfile.ZipFile(wheel) as files:
                files.extractall(packages)
    missing = [name for name in _EXPECTED if not _installed(name)]
    if missing:
        print(f"this Python lacks {', '.join(missing)}; some items will fail", flush=True)
    paths = [str(_HERE / "src"), str(packages), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    script = str(_HERE / "bench" / "gpu.py")
    os.execve(sys.executable, [sys.executable, script, *sys.argv[1:]], environment)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
