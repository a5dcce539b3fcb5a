"""Which tests may be left out of the fast run, and that CI leaves out none but the long ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNEL = ("engine/privacy", "mutants", "statistical", "accounting")


def left_out(folder: Path) -> list[str]:
    """Files with a test that plain pytest does not run though it is not long."""
    files = sorted(folder.rglob("*.py"))
    return [path.name for path in files if "mark.thorough" in path.read_text()]


@pytest.mark.parametrize("folder", KERNEL)
def test_what_guards_the_kernel_is_in_the_fast_run(root: Path, folder: str) -> None:
    assert (root / "tests" / folder).is_dir()
    assert left_out(root / "tests" / folder) == []


def test_a_mark_on_one_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_clip.py").write_text("@pytest.mark.thorough\ndef test_clip(): ...\n")
    assert left_out(tmp_path) == ["test_clip.py"]


def test_ci_runs_all_but_the_long_ones(root: Path) -> None:
    rules = dict(re.findall(r"^(\w+): .*\n\t(.+)", (root / "Makefile").read_text(), re.M))
    assert rules["test"].startswith('$(PYTEST) -m "not slow and not quick" ')
    script = (root / ".ci" / "run").read_text()
    assert re.search(r"^time make test$", script, re.M)
    assert "time make lint" in script
