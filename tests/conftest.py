"""Processes and order of the whole suite; fixtures are in `support/fixtures.py`."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["support.fixtures"]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in several processes; whoever names files gets one, which starts sooner.

    What the command line says (`-n 0`, `-n 4`) goes before this.
    """
    asked = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not asked.collectonly
    if whole and asked.numprocesses is None and "PYTEST_XDIST_WORKER" not in os.environ:
        asked.numprocesses, asked.dist = "auto", "worksteal"


def pytest_xdist_auto_num_workers() -> int | None:
    """What `-n auto` stands for: one more than processors, and not more than eight.

    Tests that wait for programs of theirs leave their processor to others.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it itself
    linux = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    return min(8, processors + 1)


# Files whose tests take half a minute and more: the longest first. Begun last, one of them would
# keep a single processor busy at the end.
_FIRST = (
    "tests/e2e/test_notebook.py",
    "tests/e2e/test_gateway.py",
    "tests/contracts/test_dist.py",
    "tests/contracts/test_extras.py",
    "tests/server/console/test_quality_hostile.py",
    "tests/e2e/test_recipes.py",
    "tests/server/test_serve_processes.py",
    "tests/server/test_replicas.py",
    "bench/tests/test_gpu.py",
    "tests/server/http/test_openapi.py",
    "tests/server/test_deny_matrix.py",
    "tests/server/http/test_connections.py",
    "tests/data/sql/test_names.py",
    "tests/data/sql/test_beside_unit.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order files by how long their tests take, where that matters; others stay where they are."""
    names = {name: rank for rank, name in enumerate(_FIRST)}
    items.sort(key=lambda item: names.get(str(item.path.relative_to(config.rootpath)), len(names)))
