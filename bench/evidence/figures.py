"""Results files: the figures that documents quote, with the date, the machine and the command.

A document names the file and the figures in a comment; tests/contracts/test_figures.py compares.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from steps.machine import memory_gib, processor, versions


class Table:
    """A Markdown table, printed row by row as it is measured, and kept for a results file."""

    def __init__(self, *head: str) -> None:
        self.rows = [list(head)]
        print(f"\n{_line(head)}\n{_line(['---'] * len(head))}", flush=True)

    def add(self, *cells: str) -> None:
        """Print a row and keep it."""
        self.rows.append(list(cells))
        print(_line(cells), flush=True)


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the results file."""
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="results file, as in bench/results/, for documents"
    )


def keep(out: Path | None, figures: Mapping[str, object]) -> None:
    """Write a results file: where `out` is None, nothing is written.

    Args:
        figures: name -> a number, a table as a list of rows, printed lines, or a mapping of these.
    """
    if out is None:
        return
    about = {
        "command": _command(out),
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {memory_gib():.0f} GiB of memory",
        "versions": ", ".join(versions()),
    }
    text = json.dumps({**about, **figures}, indent=1, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")


def _command(out: Path) -> str:
    words = [word for word in sys.argv[1:] if word not in ("--out", str(out), f"--out={out}")]
    return shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *words])
