"""Processes that torchrun starts: how one ends is how all are seen to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from taciturn.wire.exits import WorkerExit


def test_the_code_of_the_first_that_failed_is_passed_on(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    code = int(WorkerExit.GUARANTEE_REFUSED)
    script.write_text(
        "import os, time\n"
        f"raise SystemExit({code}) if os.environ['RANK'] == '1' else time.sleep(60)\n"
    )
    words = ["--nnodes=1", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    done = subprocess.run(
        [sys.executable, "-m", "taciturn.runner.together", *words, str(script)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code
