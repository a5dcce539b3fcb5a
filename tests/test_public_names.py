"""`taciturn.__all__` is the public API: complete, importable, and typed."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import taciturn
from taciturn import errors


def test_all_is_sorted_and_unique() -> None:
    assert len(set(taciturn.__all__)) == len(taciturn.__all__)
    assert taciturn.__all__ == sorted(taciturn.__all__, key=_ruff_order)


def _ruff_order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", taciturn.__all__)
def test_every_name_resolves(name: str) -> None:
    assert getattr(taciturn, name) is not None
    assert name in dir(taciturn)


def test_every_error_is_public() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert tree <= set(taciturn.__all__)
    assert all(name in (errors.__doc__ or "") for name in tree)
    assert all(getattr(taciturn, name) is getattr(errors, name) for name in tree)


def test_fixed_names() -> None:
    assert {"LLM", "PrivacyReport", "TaciturnError", "__version__"} <= set(taciturn.__all__)


def test_type_checkers_see_every_name(root: Path) -> None:
    source = (root / "src" / "taciturn" / "__init__.py").read_text(encoding="utf-8")
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taciturn")
        for alias in node.names
    }
    assert imported == set(taciturn.__all__)
    assert (root / "src" / "taciturn" / "py.typed").is_file()


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Lmm'"):
        _ = taciturn.Lmm


def test_version_has_three_parts() -> None:
    assert len(taciturn.__version__.split(".")) == 3
