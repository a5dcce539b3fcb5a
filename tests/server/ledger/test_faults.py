"""Races, takeovers and `kill -9`: small versions of `bench/ledger.py`, on both databases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.ledger import KEY

ROOT = Path(__file__).parents[3]


def run(program: str, url: str, **settings: Any) -> dict[str, Any]:
    """Run a program of `bench/ledgers/`; returns its counts."""
    given = {"url": url, "key": KEY.to_text(), **settings}
    done = subprocess.run(
        [sys.executable, "-m", f"ledgers.{program}"],
        input=json.dumps(given).encode(),
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'bench'}{os.pathsep}{ROOT / 'src'}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def test_the_last_epsilon_is_spent_once(url: str) -> None:
    found = run("race", url, clients=24, room=5)
    assert (found["admitted"], found["refused"], found["in_the_ledger"]) == (5, 19, 5)
    assert found["epsilon"] <= found["cap"]
    assert found["problems"] == []


def test_two_workers_with_one_job(url: str) -> None:
    found = run("duel", url, rounds=3, seed=1)
    assert found["fenced"] == 3
    assert found["overlaps"] == 0
    assert found["problems"] == []


@pytest.mark.timeout(1200)  # fifty kills end it; on a busy machine they take their time
def test_kills_at_random_moments(url: str) -> None:
    found = run("chaos", url, kills=50, seed=1)
    assert sum(found["killed"].values()) == 50
    assert (found["overspends"], found["lost_charges"], found["stuck"]) == (0, 0, 0)
    assert found["seconds_to_release"] < 60
    assert found["largest_epsilon"] <= found["cap"]
    assert found["problems"] == []
    assert found["blocks_run"] > 0


def test_a_block_that_runs_before_it_is_charged_is_found(
    migrated_file: Path, tmp_path: Path
) -> None:
    path = shutil.copy(migrated_file, tmp_path / "server.db")
    found = run("chaos", f"sqlite:///{path}", kills=30, seed=1, careless=True)
    assert found["lost_charges"] > 0


def test_nobody_outlives_who_started_them() -> None:
    """Also where that one fails: what it printed to ends with it, and no worker writes later."""
    failing = "from ledgers.herd import spawn; import time; spawn(lambda: time.sleep(600)); 1 / 0"
    done = subprocess.run(
        [sys.executable, "-c", failing],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'bench'}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,  # which is read until nobody holds it
        timeout=60,
        check=False,
    )
    assert b"ZeroDivisionError" in done.stderr
