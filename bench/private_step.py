"""What does privacy cost a training step? The same work, side by side and in turn.

    python bench/private_step.py                      all of it, 35 minutes on 2 idle cores
    python bench/private_step.py --quick              shows that it works; the figures mean nothing
    python bench/private_step.py --only lora/T64      the cells whose names hold this
    python bench/private_step.py --busy               processor time of one thread; others may run
    python bench/private_step.py --only lengths rows  real lengths, and memory against rows
    python bench/private_step.py --join a.json b.json put parts together that were measured apart

A Hugging Face Trainer, a plain loop, taciturn without and with DP, Opacus with hooks and ghost:
same weights, same batches, same loss. Writes a table, a figure and the raw numbers to
bench/results/ and prints the goals. Needs `pip install 'taciturn[bench]'` for Opacus.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def main() -> None:
    """Measure, write, print; ends with an error if one of ours or the plain loop failed."""
    arguments = _arguments()
    # Before torch is imported, here and in the processes that measure memory.
    arguments.threads = 1 if arguments.busy else arguments.threads
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    from steps import machine, memory
    from steps.figure import svg
    from steps.report import goals_table, markdown, quoted
    from steps.results import Results
    from steps.runner import prepare, run
    from steps.settings import FULL, QUICK

    settings = replace(QUICK if arguments.quick else FULL, only=tuple(arguments.only))
    if arguments.rounds:
        settings = replace(settings, rounds=arguments.rounds)
    if arguments.tries:
        settings = replace(settings, tries=arguments.tries)
    if arguments.busy:
        settings = replace(settings, tries=1, clock="processor")
    start = time.monotonic()
    if arguments.join:
        results = Results.joined(path.read_text(encoding="utf-8") for path in arguments.join)
    else:
        allocator = prepare(arguments.threads, arguments.allocator == "keep")
        results = run(
            settings,
            arguments.threads,
            lambda name: print(f"{time.monotonic() - start:6.0f} s  {name}", flush=True),
        )
        results.machine = machine.describe(arguments.threads, memory.how(), allocator)
        results.machine["time"] = f"{settings.clock} time"
    arguments.output.mkdir(parents=True, exist_ok=True)
    # A part, or a quick look, never replaces the whole.
    stem = "private_step" + "_quick" * arguments.quick + "_part" * bool(arguments.only)
    stem += "_busy" * (results.machine["time"] == "processor time")
    named = arguments.output / stem
    command = "python bench/private_step.py"
    text = results.json(command=command, quoted=quoted(results))
    named.with_suffix(".json").write_text(text, encoding="utf-8")
    named.with_suffix(".svg").write_text(svg(results), encoding="utf-8")
    said = markdown(results, settings, f"{stem}.svg")
    named.with_suffix(".md").write_text(said, encoding="utf-8")
    print(goals_table(results))
    print(f"\n{time.monotonic() - start:.0f} s; {named.with_suffix('.md')}")
    if results.broken():
        raise SystemExit(f"failed: {', '.join(results.broken())}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    parser.add_argument("--only", nargs="+", default=[], help="parts of cells' names")
    parser.add_argument("--join", nargs="+", type=Path, default=[], help="parts, as JSON")
    parser.add_argument("--rounds", type=int, help="that count, of each cell")
    parser.add_argument(
        "--busy", action="store_true", help="other work runs, too: one thread, processor time"
    )
    parser.add_argument("--tries", type=int, help="of what other processes disturb")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--allocator",
        choices=("keep", "default"),
        default="keep",
        help="malloc where time is measured, for all variants: as taciturn sets it, or as it comes",
    )
    parser.add_argument("--output", type=Path, default=FOLDER)
    return parser.parse_args()


if __name__ == "__main__":
    main()
