"""constraints.txt pins, exactly, everything that the tests run with."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Extra = tuple[str, str]


def declared(root: Path) -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """The requirements in pyproject.toml: of the core, and of each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        name: [Requirement(line) for line in lines if not line.startswith("taciturn[")]
        for name, lines in project["optional-dependencies"].items()
    }
    return [Requirement(line) for line in project["dependencies"]], extras


def pins(root: Path) -> dict[str, str]:
    """Package name -> pinned version."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def closure(requirements: list[Requirement]) -> Iterator[str]:
    """The names of all packages that `requirements` lead to, as installed here."""
    seen: set[Extra] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in importlib.metadata.requires(name) or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    queue.append(needed)
    yield from sorted({name for name, _ in seen})


@pytest.mark.parametrize(
    "extra", ["core", "engine", "server", "kubernetes", "gguf", "dev", "docs", "bench"]
)
def test_every_installed_requirement_is_pinned(extra: str, root: Path) -> None:
    core, extras = declared(root)
    pinned = pins(root)
    try:
        names = list(closure(core if extra == "core" else extras[extra]))
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"[{extra}] is not installed here: {error}")
    # CUDA builds of torch bring packages of their own, which torch pins itself.
    ours = [name for name in names if not name.startswith(("nvidia-", "cuda-", "triton"))]
    assert [name for name in ours if name not in pinned] == []
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in ours}
    assert installed == {name: pinned[name] for name in ours}


def test_pins_are_exact_and_name_no_place(root: Path) -> None:
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    assert not any(mark in text for mark in ("://", " @ ", "+cpu", "--"))
    assert all(version.replace(".", "").isalnum() for version in pins(root).values())


def test_pins_are_inside_the_declared_ranges(root: Path) -> None:
    core, extras = declared(root)
    pinned = pins(root)
    optional = extras.pop("quantization")
    for requirement in [*core, *(each for extra in extras.values() for each in extra)]:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
    assert {each.name for each in optional} == {"bitsandbytes"}
