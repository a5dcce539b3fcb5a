"""Does the demo's story hold at every run? Tells it with several seeds and prints a row for each.

    python bench/demo_seeds.py                 10 seeds (an hour on 2 cores)
    python bench/demo_seeds.py --seeds 3 4 5   these

Notes, held-out patients and every sample change with the seed; the DP noise never has one.
"""

from __future__ import annotations

import argparse
import time

from taciturn.demo.result import ModelOutcome
from taciturn.demo.story import Narrator, tell
from taciturn.worker import Observer


def _secret(outcome: ModelOutcome) -> str:
    control = outcome.control_log_probability or 0.0
    own, other = outcome.secret_log_probability / 2.302585, control / 2.302585
    return f"10^{own:.1f} (a stranger's 10^{other:.1f}), rank {outcome.secret_rank}"


def main() -> None:
    """Run the story for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--epsilon", type=float, default=3.0)
    arguments = parser.parse_args()
    columns = "seed | told | secret without privacy | secret with privacy | perplexity | holds | s"
    print(f"| {columns} |")
    print("|---|---|---|---|---|---|---|", flush=True)
    held = 0
    for seed in arguments.seeds:
        start = time.monotonic()
        narrator = Narrator(lambda sentence: None, lambda label: Observer())
        result = tell(seed, arguments.epsilon, narrator)
        held += result.story_holds
        outcomes = (result.base, result.non_private, result.private)
        perplexities = " / ".join(f"{outcome.perplexity:.1f}" for outcome in outcomes)
        print(
            f"| {seed} | {result.times_told(result.non_private)} / "
            f"{result.times_told(result.private)} of {result.times_asked(result.private)} | "
            f"{_secret(result.non_private)} | {_secret(result.private)} | {perplexities} | "
            f"{'yes' if result.story_holds else 'NO'} | {time.monotonic() - start:.0f} |",
            flush=True,
        )
    print(f"the story held at {held} of {len(arguments.seeds)} seeds")


if __name__ == "__main__":
    main()
