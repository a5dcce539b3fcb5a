"""The house stays one that people find their way in: sizes of folders, of files, of the map.

python tests/contracts/test_layout.py        prints the figures
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = _ROOT / "src" / "taciturn"

WIDEST_FOLDER = 26
TOP_LEVEL_ROOMS = 24
MAP_BYTES = 6 * 1024


def modules_by_folder() -> Counter[str]:
    """Folder of the package -> how many modules lie in it, packages' own files left out."""
    return Counter(
        path.parent.relative_to(_ROOT).as_posix()
        for path in _PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    )


def top_level_rooms() -> list[str]:
    """Folders and modules right in the package."""
    return sorted(
        path.stem
        for path in _PACKAGE.iterdir()
        if (path.suffix == ".py" or any(path.glob("*.py"))) and path.name != "__init__.py"
    )


def layers() -> int:
    """Layers of the rooms, as the import contract has them."""
    settings = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return len(next(contract for contract in contracts if contract["id"] == "rooms")["layers"])


def lines(folder: str) -> int:
    """Lines of Python under a folder of the repository."""
    return sum(
        len(path.read_text(encoding="utf-8").splitlines())
        for path in (_ROOT / folder).rglob("*.py")
    )


def test_no_folder_is_too_wide() -> None:
    folder, number = modules_by_folder().most_common(1)[0]
    assert number <= WIDEST_FOLDER, folder


def test_the_package_has_few_rooms() -> None:
    assert len(top_level_rooms()) <= TOP_LEVEL_ROOMS, top_level_rooms()


def test_the_map_is_short() -> None:
    assert (_ROOT / "ARCHITECTURE.md").stat().st_size <= MAP_BYTES


if __name__ == "__main__":
    folder, number = modules_by_folder().most_common(1)[0]
    print(f"modules in the widest folder   {number} ({folder})")
    print(f"rooms on the top level         {len(top_level_rooms())}")
    print(f"layers of rooms                {layers()}")
    for name in ("src", "tests", "bench"):
        print(f"lines of Python in {name:<11} {lines(name):,}")
    print(f"ARCHITECTURE.md                {(_ROOT / 'ARCHITECTURE.md').stat().st_size:,} bytes")
