"""Is it exact on a GPU, and what does privacy cost there? All of it in one run of some minutes.

    python bench/gpu.py --minutes 8 --out FOLDER           all checks, then speed and memory
    python bench/gpu.py --minutes 2 --correctness          short checks; speed if time is left
    python bench/gpu.py --minutes 5 --speed                no checks
    python bench/gpu.py --only norms company               items whose names hold one of these
    python bench/gpu.py --device cpu --tiny                shows that it works; no figure counts
    python bench/gpu.py --pack FOLDER                      all it needs on a machine without network

Weights are random, in the shapes of real models, made on the device. Prints one line an item as it
ends, then a table of speed and the goals; FOLDER/gpu.json has all figures, after every item. Ends
with 1 if a check failed. Needs `pip install 'taciturn[bench]'` for Opacus and the Trainer; what is
not installed is skipped, and says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))
_NAMED = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
if not any((Path(path) / "taciturn").is_dir() for path in _NAMED):
    sys.path.insert(1, str(_HERE.parent / "src"))


def main() -> None:
    """Try every item, write, print; ends with 1 if a check failed."""
    arguments = _arguments()
    if arguments.pack:
        from gpus.pack import pack

        print(pack(arguments.pack))
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Of cuBLAS, as the product sets it, and before anything is multiplied.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _collect_warnings()
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()

    from gpus.models import Place

    device = arguments.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        print("no GPU here: --device cpu --tiny shows that the script works")
        return
    place = Place(device, arguments.tiny, arguments.correctness)
    if arguments.child:
        from gpus.fits import child

        child(arguments.child, place)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        raise SystemExit(_run(arguments, place, Path(folder)))


_WARNINGS: dict[str, None] = {}
"""Whatever was warned of, once; told in the file, and of the product's own also at the end."""


def _collect_warnings() -> None:
    def note(message: Any, category: Any, filename: Any, *_: Any, **__: Any) -> None:
        place = "taciturn" if "/taciturn/" in filename else Path(filename).name
        _WARNINGS[f"{place}: {category.__name__}: {str(message)[:300]}"] = None

    warnings.simplefilter("default")
    warnings.showwarning = note


def _run(arguments: argparse.Namespace, place: Any, folder: Path) -> int:
    from gpus import fits, speed
    from gpus.items import FAIL, PASS, SKIP, Item, Run, chosen

    arguments.out.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.out / "gpu.json", arguments.minutes, _machine(place))
    figures = speed.Speed()

    def last_words() -> None:
        print(_summary(run, figures), flush=True)

    run.guard(last_words)
    whole, apart = fits.items(place, folder)
    later = [Item(name, 5, lambda: None) for name in apart]  # type: ignore[arg-type, return-value]
    wanted = {item.name for item in chosen(later, arguments.only, arguments.skip)}
    background = fits.Background({name: apart[name] for name in apart if name in wanted})
    if not arguments.speed:
        background.start()
    # They were started long ago, and nothing is left of them once speed is measured.
    started = [Item(name, 25, partial(background.outcome, name)) for name in apart]
    checks = [] if arguments.speed else [*checks_of(place), *whole, *started]
    for item in chosen([*checks, *measurements(place, figures)], arguments.only, arguments.skip):
        if item.speed:
            background.stop()
        run.try_item(item)
    background.stop()
    print(_summary(run, figures), flush=True)
    counts = dict.fromkeys((PASS, FAIL, SKIP), 0)
    for line in run.lines:
        counts[line.verdict] = counts.get(line.verdict, 0) + 1
    return 1 if counts[FAIL] else 0


def checks_of(place: Any) -> list[Any]:
    """Checks of one process, but for its whole fit."""
    from gpus import exactness, randomness, recorded

    return [*randomness.items(place), *exactness.items(place), *recorded.items(place)]


def measurements(place: Any, figures: Any) -> list[Any]:
    """Of time and memory, the most important first."""
    from gpus import speed, starts

    measured = speed.items(place, figures)
    # After the first cells, which decide most.
    measured[6:6] = starts.items(place, figures)
    return measured


def _summary(run: Any, figures: Any) -> str:
    """The table, the goals and the counts; also into the files."""
    from gpus import speed
    from gpus.items import FAIL, PASS, SKIP

    words = {True: "hit", False: "MISS", None: "not measured"}
    rows = list(speed.goals(figures))
    lines = [speed.table(figures), "", "| goal | | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {goal} | {measured} | {words[met]} |" for what, goal, measured, met in rows
    ]
    verdicts = [line.verdict for line in run.lines]
    failed = [line.name for line in run.lines if line.verdict == FAIL]
    count = f"{verdicts.count(PASS)} pass, {len(failed)} FAIL, {verdicts.count(SKIP)} skipped"
    lines += ["", f"{count} in {run.seconds:.0f} s" + (f"; {', '.join(failed)}" if failed else "")]
    lines += [each[:200] for each in _WARNINGS if each.startswith("taciturn")][:3]
    text = "\n".join(lines)
    run.summary = {
        "counts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "goals": [
            {"what": what, "goal": goal, "measured": measured, "met": met}
            for what, goal, measured, met in rows
        ],
        "speed": figures.rows,
        "others": figures.others,
        "matrix_peak_flops": figures.peak_flops,
    }
    run.write()
    run.machine["warnings"] = list(_WARNINGS)[:40]
    run.write()
    lines_of_items = [f"| {line.name} | {line.verdict} | {line.figure} |" for line in run.lines]
    whole = "\n".join(["| item | | |", "|---|---|---|", *lines_of_items, "", text, ""])
    run.file.with_suffix(".md").write_text(whole, encoding="utf-8")
    return text


def _machine(place: Any) -> dict[str, Any]:
    import torch

    from steps import machine

    facts: dict[str, Any] = {}
    try:
        threads = torch.get_num_threads()
        facts |= machine.describe(threads, "torch.cuda.max_memory_allocated", "-")
        facts["tiny"] = place.tiny
        if place.on_gpu:
            properties = torch.cuda.get_device_properties(0)
            facts |= {
                "gpu": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "gpu_bytes": properties.total_memory,
                "cuda": torch.version.cuda,
            }
    except Exception as error:
        facts["failure"] = str(error)[:200]
    return facts


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="budget of all items")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json")
    parser.add_argument("--only", nargs="+", default=[], help="parts of items' names")
    parser.add_argument("--skip", nargs="+", default=[], help="the same, left out")
    parser.add_argument("--device", help="cuda or cpu; the GPU if there is one")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that it works")
    parser.add_argument(
        "--correctness", action="store_true", help="fewer shapes in the checks: for a first try"
    )
    parser.add_argument("--speed", action="store_true", help="no checks")
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="FOLDER",
        help="sources, and wheels for Python 3.12 and CUDA 13, in 64 MiB; runs nothing",
    )
    parser.add_argument("--child", choices=("group", "shards"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
