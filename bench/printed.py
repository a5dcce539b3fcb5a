"""What the demo and the example of preferences print, as documents show it.

    python bench/printed.py demo --out bench/results/demo.json            10 minutes of processor
    python bench/printed.py demo --runs 3 --out ...                       the times of three runs
    python bench/printed.py preferences --out bench/results/preferences.json

The output is that of the first run. Of the demo it begins at the table.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from evidence.figures import add_out, keep

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "demo": ("-m", "taciturn", "demo", "--output", "demo-report.html"),
    "preferences": (str(ROOT / "examples" / "preference_pairs.py"), "out"),
}
WIDTH = 80
TABLE = "asked "


def run(name: str) -> tuple[str, float]:
    """Run once in a folder of its own; return what was printed, and the minutes that it took."""
    environment = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT / "src")}
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        printed = subprocess.run(
            [sys.executable, *COMMANDS[name]],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        minutes = (time.monotonic() - start) / 60
    printed = printed.replace(os.path.realpath(folder), "...")
    return printed[max(0, printed.find(TABLE)) :].strip("\n"), minutes


def wrapped(printed: str) -> list[str]:
    """Return the lines as a terminal of `WIDTH` shows them."""
    lines = [textwrap.wrap(line.rstrip(), WIDTH) or [""] for line in printed.splitlines()]
    return [part for parts in lines for part in parts]


def main() -> None:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS, nargs="?", default="preferences")
    parser.add_argument("--runs", type=int, default=1)
    add_out(parser)
    given = parser.parse_args()
    runs = [run(given.command) for _ in range(given.runs)]
    print(runs[0][0])
    figures: dict[str, object] = {"printed": wrapped(runs[0][0])}
    kept = re.search(r"kept (\d+)%", runs[0][0])
    if kept is not None:  # the demo, whose time is quoted, too
        minutes = [minutes for _, minutes in runs]
        figures["minutes"] = {"least": min(minutes), "most": max(minutes)}
        figures["kept"] = int(kept[1]) / 100
    keep(given.out, figures)


if __name__ == "__main__":
    main()
