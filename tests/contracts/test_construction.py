"""Each type of the privacy boundary is constructed in one module: nobody can skip clip or noise.

mypy keeps the order of the types; this keeps anybody from making a later one out of thin air.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOMES = {
    "PerUnitGradients": "engine/privacy/per_example.py",
    "BoundedSum": "engine/privacy/clipping.py",
    "PrivateGradient": "engine/privacy/noise.py",
    "PrivateStatistics": "engine/privacy/statistic.py",
}
# Ways to make or alter an instance of a frozen dataclass without calling its name.
BACK_DOORS = {"__new__", "__setattr__", "__replace__", "__setstate__", "__reduce_ex__"}
REPLACERS = {"replace", "dataclasses.replace", "copy.replace"}
TYPES_MODULE = "engine/privacy/types.py"


def constructions(source: str) -> Iterator[tuple[str, int]]:
    """Every (type, line) where `source` may construct or alias a type of the boundary."""
    tree = ast.parse(source)
    names = _local_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _called(node.func, names)
            if called in HOMES:
                yield called, node.lineno
        elif isinstance(node, ast.Assign | ast.NamedExpr):
            # `make = BoundedSum` would hide the constructor behind another name.
            called = _called(node.value, names) if node.value is not None else None
            if called in HOMES:
                yield called, node.lineno


def _local_names(tree: ast.Module) -> dict[str, str]:
    """What an import calls the types here: {local name: type}."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in HOMES
    }


def _called(node: ast.expr, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return node.attr
    return None


def back_doors(source: str) -> Iterator[tuple[str, int]]:
    """Every (name, line) of a call that makes or alters frozen values unseen."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in REPLACERS or name.rpartition(".")[2] in BACK_DOORS:
            yield name, node.lineno


def strangers(package: Path) -> list[str]:
    """Constructions outside their home, as `file:line type`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        source = path.read_text(encoding="utf-8")
        found += [
            f"{where}:{line} {name}" for name, line in constructions(source) if where != HOMES[name]
        ]
    return found


def test_types_are_constructed_at_home_only(root: Path) -> None:
    assert strangers(root / "src" / "taciturn") == []


def test_every_type_is_constructed_at_home(root: Path) -> None:
    for name, home in HOMES.items():
        source = (root / "src" / "taciturn" / home).read_text(encoding="utf-8")
        assert name in {made for made, _ in constructions(source)}, home


def test_boundary_types_are_frozen(root: Path) -> None:
    source = (root / "src" / "taciturn" / TYPES_MODULE).read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for name in HOMES:
        assert any("frozen=True" in ast.unparse(each) for each in classes[name].decorator_list)


def test_no_back_door_near_the_types(root: Path) -> None:
    package = root / "src" / "taciturn"
    found = []
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        where = path.relative_to(package).as_posix()
        if where.startswith("engine/privacy/") or any(name in source for name in HOMES):
            found += [f"{where}:{line} {name}" for name, line in back_doors(source)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "dataclasses.replace(total, l2_sensitivity=0.0)",
        "replace(total, l2_sensitivity=0.0)",
        "object.__setattr__(total, 'l2_sensitivity', 0.0)",
        "PrivateGradient.__new__(PrivateGradient)",
    ],
)
def test_planted_back_door_is_caught(line: str) -> None:
    assert [number for _, number in back_doors(f"total = 1\n{line}\n")] == [2]


PLANTED = {
    "call": "from taciturn.engine.privacy.types import BoundedSum\nx = BoundedSum({}, 1.0, None)",
    "renamed": (
        "from taciturn.engine.privacy.types import PrivateGradient as P\nx = P({}, noise_std=0.0)"
    ),
    "through the module": (
        "from taciturn.engine.privacy import types\nx = types.PerUnitGradients({}, None)"
    ),
    "alias": "from taciturn.engine.privacy.types import BoundedSum\nmake = BoundedSum",
    "in a function": (
        "def f():\n    from taciturn.engine.privacy.types import PrivateGradient\n"
        "    return PrivateGradient({}, 0.0)"
    ),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("where", ["engine/training/step.py", "engine/privacy/mechanism.py"])
def test_planted_construction_is_caught(name: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(PLANTED[name] + "\n", encoding="utf-8")
    assert len(strangers(tmp_path)) == 1


def test_home_may_construct(tmp_path: Path) -> None:
    for name, home in HOMES.items():
        path = tmp_path / home
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x = {name}()\n", encoding="utf-8")
    assert strangers(tmp_path) == []
