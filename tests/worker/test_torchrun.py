"""Processes that torchrun starts: how one ends is how all are seen to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from support.program import run_python
from taciturn.wire.exits import FINAL, WorkerExit


def test_the_code_of_the_first_that_failed_is_passed_on(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    code = int(WorkerExit.GUARANTEE_REFUSED)
    script.write_text(
        "import os, time\n"
        f"raise SystemExit({code}) if os.environ['RANK'] == '1' else time.sleep(60)\n"
    )
    words = ["--nnodes=1", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    done = run_python("-m", "taciturn.worker.torchrun", *words, script)
    assert done.returncode == code


def test_a_machine_that_is_taken_away_is_another_try_and_not_an_end(tmp_path: Path) -> None:
    """torchrun is told to stop: its processes have time for a last checkpoint, and what it ends
    with is no exit code that a launcher takes for final."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"mark = pathlib.Path({str(tmp_path)!r}) / os.environ['RANK']\n"
        "def stop(*_):\n"
        "    time.sleep(1)\n"
        "    mark.with_suffix('.saved').touch()\n"
        f"    os._exit({int(WorkerExit.INTERRUPTED)})\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "mark.with_suffix('.ready').touch()\n"
        "time.sleep(60)\n"
    )
    words = ["--nnodes=1", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "taciturn.worker.torchrun", *words, str(script)]
    )
    try:
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("*.ready"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
    assert code == WorkerExit.INTERRUPTED
    assert code not in FINAL
    assert {path.name for path in tmp_path.glob("*.saved")} == {"0.saved", "1.saved"}


# A host without an address yet, as the first machine's is for a while, is asked for again.
MEETS = """
import datetime, sys, time
from torch.distributed import DistNetworkError, DistStoreError, TCPStore
began = time.monotonic()
try:
    TCPStore("first.nowhere.invalid", 29500, 2, False, datetime.timedelta(seconds=4))
except (DistNetworkError, DistStoreError):
    sys.exit(0 if time.monotonic() - began > 3 else 1)
"""


def test_a_name_that_is_not_there_yet_is_waited_for() -> None:
    done = run_python("-c", MEETS)
    assert done.returncode == 0
