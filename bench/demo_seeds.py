"""Does the demo's story hold at every run? Tells it with several seeds and prints a row for each.

    python bench/demo_seeds.py                     10 seeds (an hour on 2 cores)
    python bench/demo_seeds.py --seeds 3 4 5       these
    python bench/demo_seeds.py --model MODEL.gguf --minutes 60 --seeds 0 --samples
                                                   another model, and what it writes

Notes, held-out patients and every sample change with the seed; the DP noise never has one. A row
says what share of the ordinary fit's gain the private one kept (nats per token), how many of its
samples on ordinary prompts the judge takes for notes, how many of its answers tell the secret, and
how often it repeats itself; then the same of base and ordinary fit, where there is such a figure.
"""

from __future__ import annotations

import argparse
import time

from taciturn.demo.result import DemoResult, ModelOutcome, Sample
from taciturn.demo.run import Narrator, tell
from taciturn.embedded import TINY_MEDICAL
from taciturn.local.fit import Observer


def _secret(outcome: ModelOutcome) -> str:
    control = outcome.control_log_probability or 0.0
    own, other = outcome.secret_log_probability / 2.302585, control / 2.302585
    return f"10^{own:.1f} (a stranger's 10^{other:.1f}), rank {outcome.secret_rank}"


def _row(seed: int, result: DemoResult, seconds: float) -> str:
    outcomes = (result.private, result.non_private, result.base)
    cells = [
        str(seed),
        result.share_in_words(result.private),
        " / ".join(f"{each.notes} of {each.judged}" for each in outcomes),
        " / ".join(f"{result.times_told(each)} of {result.times_asked(each)}" for each in outcomes),
        " / ".join(f"{each.repetition:.1%}" for each in outcomes),
        " / ".join(f"{each.held_out_loss:.2f}" for each in outcomes),
        _secret(result.private),
        _secret(result.non_private),
        "yes" if result.story_holds else f"NO: {'; '.join(result.shortfalls)}",
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _samples(result: DemoResult) -> str:
    """What the models wrote, as a Markdown table."""
    outcomes = (result.base, result.non_private, result.private)
    rows = [
        f"\n| prompt | base | without privacy | with privacy (epsilon {result.epsilon:.3g}) |",
        "|---|---|---|---|",
    ]
    for samples in zip(*(outcome.samples for outcome in outcomes), strict=True):
        texts = [_cell(sample) for sample in samples]
        rows.append(f"| {samples[0].prompt} | {' | '.join(texts)} |")
    return "\n".join(rows) + "\n"


def _cell(sample: Sample) -> str:
    text = " ".join(sample.continuation.split()).replace("|", "\\|")
    return text if sample.reads_as_note is not False else f"{text} *(not a note)*"


def main() -> None:
    """Run the story for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--model", default=TINY_MEDICAL)
    parser.add_argument("--minutes", type=float, default=10.0, help="per fit of another model")
    parser.add_argument("--samples", action="store_true", help="print what the models write, too")
    arguments = parser.parse_args()
    columns = (
        "seed | kept | notes (private / ordinary / base) | secrets | repetition | nats per token | "
        "secret with privacy | secret without | goals met | s"
    )
    print(f"| {columns} |")
    print(f"|{'---|' * (columns.count('|') + 1)}", flush=True)
    held = 0
    samples = []
    for seed in arguments.seeds:
        start = time.monotonic()
        narrator = Narrator(lambda sentence: None, lambda label: Observer())
        result = tell(seed, arguments.epsilon, narrator, arguments.model, minutes=arguments.minutes)
        held += result.story_holds
        print(_row(seed, result, time.monotonic() - start), flush=True)
        samples.append(_samples(result))
    print(f"goals met at {held} of {len(arguments.seeds)} seeds")
    if arguments.samples:
        print(*samples)


if __name__ == "__main__":
    main()
