"""What other libraries' private fits are worth, beside ours: the same model, data and guarantee.

PHEE (see bench/phee.py), the report as the unit, our plan's epsilon, delta, steps and batch. The
peers train PEFT's LoRA on all linear layers, ranks 4 and 16, with AdamW and a rate that falls in a
line. Their rates are found on dev.jsonl for each peer, rank and epsilon: with `--simulated UNITS`
by short trials (few units a step under the noise of the whole batch: not private, thrown away, in
no table), otherwise by complete runs. Figures are of complete runs; base, ordinary and our own fits
are those that bench/phee.py has measured for the same model, data and secret.

    pip install opacus opake            wherever this script is run from
    python bench/peers_worth.py FOLDER --model MODEL --epsilon 3 --simulated 16
    python bench/peers_worth.py FOLDER --model MODEL --epsilon 3 --final    on test.jsonl, last

What is finished is kept in bench/results/phee.jsonl. A run of a peer that was killed begins anew.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence.bench import Bench, on_phee, phee_parser
from evidence.corpus import TEXT, UNIT
from evidence.ordinary import Setting, attach, search
from evidence.peers import FITS, Task, Units, installed
from evidence.records import Row
from evidence.scores import score
from evidence.tables import ORDINARY, final, on_dev, table
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.model.load import LoadedModel
from taciturn.planning.plan import TrainingPlan, max_tokens
from taciturn.spec import DataSpec


class Peers:
    """Fits of other libraries on a bench, by a plan of ours."""

    def __init__(self, bench: Bench, epsilon: float, plan: TrainingPlan, physical: int) -> None:
        self._bench, self._plan, self._physical = bench, plan, physical
        self._epsilon = epsilon

    def tuned(self, peer: str, rank: int, drawn: int) -> Row:
        """The complete fit with the rate that is best on dev, by trials of `drawn` units a step."""

        def run(setting: Setting) -> float:
            return float(self.fit(peer, setting, drawn)["dev"]["nats"])

        best = search(run, (Setting("lora", 1e-3, rank=rank),), epochs=False)
        return self.fit(peer, best, self._plan.batch_size)

    def fit(self, peer: str, setting: Setting, drawn: int) -> Row:
        """One fit, complete if as many units are drawn as the plan says."""
        plan = self._plan
        assert plan.privacy is not None
        task = Task(
            epsilon=self._epsilon,
            delta=plan.privacy.delta,
            steps=plan.steps,
            batch=plan.batch_size,
            drawn=min(drawn, plan.batch_size),
            clip=plan.privacy.l2_clip_norm,
            rate=setting.rate,
            physical=self._physical,
        )
        about = {name: getattr(task, name) for name in Task.__slots__ if name != "physical"}
        key = {
            **self._bench.subject,
            "stage": "peer" if task.drawn == task.batch else "simulated peer",
            "seed": self._bench.given.seed,
            "peer": peer,
            "version": installed(peer),
            "method": "lora",
            "rank": setting.rank,
            **about,
        }
        return self._bench.records.measured(key, lambda: self._fit(key, peer, setting, task))

    def _fit(self, key: dict[str, Any], peer: str, setting: Setting, task: Task) -> Row:
        bench = self._bench
        print(f"  {key['stage']}: {peer}, rank {setting.rank}, rate {setting.rate:g}", flush=True)
        base = bench.fresh()
        model = attach(base.model, setting, bench.given.seed)
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        with tempfile.TemporaryDirectory() as scratch:
            units = self._units(base, Path(scratch))
            began = time.monotonic()
            noise = FITS[peer](model, units, task)
            minutes = (time.monotonic() - began) / 60
        return bench.kept(key, model) | {
            "dev": score(base, model.eval(), bench.corpus.dev).as_row(),
            "noise_multiplier": noise,
            "trained": trained,
            "minutes": minutes,
        }

    def _units(self, base: LoadedModel, folder: Path) -> Units:
        spec = DataSpec(text_field=TEXT, privacy_unit=UNIT)
        limit = max_tokens(spec, base.context_length)
        path = self._bench.corpus.write(folder)
        return Units(prepare(str(path), spec, base.tokenizer, limit, folder / "units", 0))


def chosen(bench: Bench, epsilon: float, ranks: Sequence[int]) -> dict[str, Row | None]:
    """Label -> row, the best on dev of each kind; base and ordinary fit first, then ours."""
    same = {"seed": bench.given.seed, "epsilon": epsilon}
    found = {
        ORDINARY: bench.best("ordinary", seed=bench.given.seed),
        f"taciturn, epsilon = {epsilon:g}": bench.best("private", **same),
    }
    for peer in FITS:
        for rank in ranks:
            row = bench.best("peer", peer=peer, rank=rank, **same)
            version = "" if row is None else f" {row['key']['version']}"
            found[f"{peer}{version}, LoRA r = {rank}, epsilon = {epsilon:g}"] = row
    return {"base": None, **{label: row for label, row in found.items() if row is not None}}


def _parsed() -> argparse.Namespace:
    parser = phee_parser(__doc__)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[3.0])
    parser.add_argument("--rank", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--peer", choices=tuple(FITS), nargs="+", default=tuple(FITS))
    parser.add_argument("--simulated", type=int, metavar="UNITS", help="a step, to find rates by")
    parser.add_argument(
        "--rate", type=float, help="complete runs with this rate; none is looked for"
    )
    parser.add_argument("--clip", type=float, help="norm of a unit's gradient; default: our plan's")
    parser.add_argument("--steps", type=int, help="default: our plan's")
    parser.add_argument("--batch", type=int, help="default: our plan's")
    parser.add_argument("--physical", type=int, default=4, help="units computed at once")
    return parser.parse_args()


def measure(bench: Bench, epsilon: float, given: argparse.Namespace) -> None:
    """All fits of the peers that are installed, at one epsilon."""
    asked = {"steps": given.steps, "batch_size": given.batch, "l2_clip_norm": given.clip}
    plan = bench.plan(epsilon, {name: value for name, value in asked.items() if value is not None})
    peers = Peers(bench, epsilon, plan, given.physical)
    for peer in given.peer:
        if installed(peer) is None:
            print(f"skipped: {peer} is not installed here; pip install {peer}")
            continue
        for rank in given.rank:
            if given.rate is not None:
                peers.fit(peer, Setting("lora", given.rate, rank=rank), plan.batch_size)
            else:
                peers.tuned(peer, rank, given.simulated or plan.batch_size)


def main() -> None:
    """Measure what was asked for, then print all there is."""
    given = _parsed()
    bench = on_phee(given)
    if bench is None:
        return
    for epsilon in given.epsilon:
        if not (given.final or given.table):
            measure(bench, epsilon, given)
        models = chosen(bench, epsilon, given.rank)
        if given.final:
            wanted = [ORDINARY, f"taciturn, epsilon = {epsilon:g}"]
            print(f"On test.jsonl:\n\n{table(bench, models, final(bench, models, wanted))}\n")
        else:
            print("On dev.jsonl, by which choices were made:\n")
            print(table(bench, models, on_dev(bench, models)) + "\n")


if __name__ == "__main__":
    main()
