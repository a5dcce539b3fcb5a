"""What audits prove: how much of the real engine's epsilon, and more than that of broken ones.

    python bench/auditor.py

First the one-run audit of the real engine, several times at each setting: bounds as shares of
epsilon. Then every attacker against every engine, in the worlds of tests/auditing: the real engine
in all of them, each broken one where it is caught. Epsilons are at delta 1e-5, bounds have 95%
confidence; in the table it is shared among all attackers and looks.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from auditing.engines import CAUGHT_IN, engine
from auditing.verdicts import Count, best, judge
from auditing.worlds import WORLDS
from evidence.figures import Table, add_out, keep
from mutants.variants import REAL
from taciturn.engine.auditing.claim import DpSgdRun
from taciturn.engine.auditing.engine_audit import audit_engine
from taciturn.engine.auditing.gradient_canaries import EngineSettings
from taciturn.engine.privacy.forms import Form

DELTA, CONFIDENCE, REPEATS = 1e-5, 0.95, 20
ONE_STEP = EngineSettings(DpSgdRun(1.0, 1.0, 1))
SETTINGS = {
    "all units in one step, 10,000 canaries": (ONE_STEP, 10_000),
    "the same, 2,000 canaries": (ONE_STEP, 2000),
    "the same, 2,000, instantiated gradients": (replace(ONE_STEP, form=Form.INSTANTIATE), 2000),
    "the same, 2,000, three records each": (replace(ONE_STEP, records_per_unit=3), 2000),
    "all units in four steps, 10,000": (replace(ONE_STEP, run=DpSgdRun(1.0, 2.0, 4)), 10_000),
    "a tenth of the units in each of 20 steps, 10,000": (
        replace(ONE_STEP, run=DpSgdRun(0.1, 0.8, 20)),
        10_000,
    ),
}


def one_run(name: str) -> list[str]:
    """One row: bounds over epsilon in repeated audits."""
    settings, canaries = SETTINGS[name]
    audits = [
        audit_engine(settings, delta=DELTA, canaries=canaries, confidence=CONFIDENCE)
        for _ in range(REPEATS)
    ]
    shares = [audit.epsilon_lower_bound / audit.epsilon for audit in audits]
    return [
        name,
        f"{audits[0].epsilon:.2f}",
        f"{statistics.mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})",
        f"{sum(audit.refuted for audit in audits)} of {REPEATS}",
    ]


def row(name: str, count: Count) -> list[str]:
    """One row of the table of engines."""
    claimed = count.world.run.epsilon(DELTA)
    found = count.epsilon_lower_bound(DELTA, CONFIDENCE)
    proved = f"{found:.2f}" if math.isfinite(found) else "more than any noise explains"
    guesses = f"{count.correct} of {count.runs}"
    verdict = "convicted" if count.convicts else ""
    return [name, count.world.name, count.attacker, guesses, f"{claimed:.2f}", proved, verdict]


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_out(parser)
    out = parser.parse_args().out
    real = Table("setting", "epsilon promised", "proved, mean (range)", "refuted")
    for name in SETTINGS:
        real.add(*one_run(name))
    head = ("engine", "world", "attacker", "attacker was right", "promised", "proved", "verdict")
    engines = Table(*head)
    for world in WORLDS.values():
        engines.add(*row("the real one", best(judge(REAL, world))))
    for name, where in CAUGHT_IN.items():
        engines.add(*row(name, best(judge(engine(name), WORLDS[where]))))
    about = {"audits": REPEATS, "confidence": CONFIDENCE, "delta": DELTA}
    keep(out, {**about, "real": real.rows, "broken": engines.rows})


if __name__ == "__main__":
    main()
