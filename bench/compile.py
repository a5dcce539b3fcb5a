"""Where does torch.compile pay? Steps with and without it, in turn, on the model of `make bench`.

    python bench/compile.py                    LoRA and full, with DP and without; some minutes
    python bench/compile.py --tokens 256 --sequences 8

Prints each step's time beside the plain loop's (eager) and what compiling took. What is compiled is
what `compile=True` compiles.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    """Print one line for each method and variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    from steps.runner import prepare
    from steps.settings import METHODS, Cell

    prepare(arguments.threads, keep=True)
    print("| method | variant | step, s | ratio to plain (quartiles) | first step, s |")
    print("|---|---|---|---|---|")
    for method in METHODS:
        _measure(Cell(method, arguments.tokens, arguments.sequences, 1), arguments.rounds)


def _measure(cell: object, rounds: int) -> None:
    from steps.measure import Stopwatch, interleave
    from steps.registry import LABELS, ORDINARY, PLAIN, PRIVATE, make
    from steps.settings import Cell, ModelShape
    from taciturn.engine.model.compiled import compile_parts

    assert isinstance(cell, Cell)
    task = cell.task(ModelShape(), rounds + 2)
    variants = {name: make(name, task) for name in (PLAIN, ORDINARY, PRIVATE)}
    first, *others = task.workload.batches
    seconds = {}
    for name in (ORDINARY, PRIVATE):
        compiled = make(name, task)
        compile_parts(compiled.model, whole=name == ORDINARY)  # type: ignore[attr-defined]
        watch = Stopwatch()
        compiled.run([first], watch)
        variants[f"{name}+compile"], seconds[f"{name}+compile"] = compiled, watch.seconds
    timings = interleave(variants, [[batch] for batch in others], warmup=1, tries=3)
    for name in variants:
        plain, _, mark = name.partition("+")
        label = LABELS[plain] + (", compiled" if mark else "")
        ratio = timings.ratio(name, PLAIN)
        print(
            f"| {cell.method} | {label} | {timings.spread(name).median:.3f} | {ratio.median:.2f} "
            f"({ratio.low:.2f} to {ratio.high:.2f}) | {seconds.get(name, float('nan')):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
