"""A folder that takes the run to a machine without a network: sources, wheels, and how to start.

What the machine's own Python has stays its own: of the wheels, `run.py` unpacks only what lacks.
Where a folder's size is limited, most of it would be code for other GPUs: of bitsandbytes' binaries
those of one CUDA are kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 64 << 20
PYTHON, CUDA = "3.12", "130"
# Beside torch, triton, transformers, peft and accelerate with what they need, and numpy, scipy,
# pandas and pyarrow, which are too large.
PACKAGES = (
    "absl-py",
    "annotated-types",
    "attrs",
    "bitsandbytes",
    "cffi",
    "cryptography",
    "dm-tree",
    "dp-accounting",
    "duckdb",
    "opacus",
    "opt_einsum",
    "pycparser",
    "pydantic",
    "pydantic_core",
    "sqlglot",
    "tenacity",
    "typing-inspection",
)
_PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17))
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "results", "tests")
_BINARIES = "bitsandbytes/libbitsandbytes_"

Download = Callable[[list[str], Path], None]
"""Puts the wheels of some requirements into a folder."""


@dataclass(frozen=True)
class Pack:
    """A packed folder.

    Attributes:
        sizes: bytes of its parts, the largest first.
    """

    folder: Path
    sizes: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in self.sizes.items())
        return (
            f"{self.folder}: {self.total / 2**20:.1f} of {LIMIT_BYTES >> 20} MiB ({parts}); "
            f"there: python3 run.py --minutes 8 --out FOLDER"
        )


def pack(folder: Path, download: Download | None = None) -> Pack:
    """Fill an empty folder.

    Raises:
        SystemExit: it is not empty, wheels cannot be had, or all of it is larger than 64 MiB.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name a new folder")
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    (download or _download)(requirements((_ROOT / "constraints.txt").read_text("utf-8")), wheels)
    for wheel in wheels.glob("bitsandbytes-*.whl"):
        _of_one_cuda(wheel)
    shutil.copytree(_ROOT / "src" / "taciturn", folder / "src" / "taciturn", ignore=_LEFT_OUT)
    shutil.copytree(_ROOT / "bench", folder / "bench", ignore=_LEFT_OUT)
    shutil.copy(_ROOT / "bench" / "gpus" / "run.py", folder / "run.py")
    packed = Pack(folder, _sizes(folder))
    if packed.total > LIMIT_BYTES:
        raise SystemExit(f"too large: {packed}")
    return packed


def requirements(constraints: str) -> list[str]:
    """The packages in the versions that are tested."""
    pins = dict(line.split("==", 1) for line in constraints.splitlines() if "==" in line)
    return [f"{name}=={pins[name].strip()}" for name in PACKAGES]


def _download(wanted: list[str], wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    command += [part for name in _PLATFORMS for part in ("--platform", name)]
    done = subprocess.run(
        [*command, "--dest", str(wheels), *wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"pip download: {done.stderr.strip()[-600:]}")


def _of_one_cuda(wheel: Path) -> None:
    """The same wheel without binaries of other CUDA versions and other makers' GPUs."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as kept:
        for name in whole.namelist():
            if not name.startswith(_BINARIES) or f"cuda{CUDA}." in name or "_cpu." in name:
                kept.writestr(name, whole.read(name))
    part.replace(wheel)


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {
        part.name: sum(file.stat().st_size for file in [part, *part.rglob("*")] if file.is_file())
        for part in folder.iterdir()
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
