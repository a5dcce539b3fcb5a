"""Trials of the defaults of private fits, SIMULATED: few units a step under the noise of many.

What a step of a private fit gives is the mean of B units' clipped gradients, with noise of sigma C
/ B on it. Drawing a few units and adding the noise that B would have had gives the same noise for a
small part of the arithmetic, and a noisier signal: figures are a little worse than those of the fit
that they stand for, by how much `--units` shows. What is trained so is NOT private, so it is thrown
away, and no figure of this script stands where figures of private fits do.

    python bench/tuning.py PHEE --model MODEL --epsilon 8 --rate 0.25 --rank 4

Prints a line of JSON for each trial: nats per token on records of PHEE's dev.jsonl, of the base and
of what was trained (Sun et al., EMNLP 2022, MIT licence; not part of this repository).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taciturn.engine.data.tokenize import TokenizedDataset, prepare
from taciturn.engine.evaluation.likelihood import unit_scores
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.training.loop import Run, train
from taciturn.engine.training.trainable import trainable
from taciturn.planning.plan import TrainingPlan, adapter_plan, make_plan
from taciturn.spec import DataSpec, FitSpec
from taciturn.worker import configure_cpu, public_facts

UNIT = "split_part(id,'_',1)"
MAX_TOKENS = 128


@dataclass(frozen=True)
class Trial:
    """What differs from the defaults.

    Attributes:
        rate: factor on the default learning rate.
        rank: of LoRA; None for the default.
        head: rank of the adapter on the output layer; 0 for none, None for the default.
        targets: modules that are adapted; None for all linear layers.
        clip: the clip norm; None for the default.
        units: drawn in a step, in expectation; 0 for as many as the plan has, which is private.
    """

    model: str
    epsilon: float
    rate: float
    rank: int | None
    head: int | None
    targets: tuple[str, ...] | None
    clip: float | None
    batch: int | None
    steps: int | None
    units: int
    seed: int
    method: str

    def spec(self, threads: int) -> FitSpec:
        """As a fit would be asked for."""
        given: dict[str, Any] = {
            "r": self.rank,
            "l2_clip_norm": self.clip,
            "batch_size": self.batch,
            "steps": self.steps,
            "target_modules": self.targets,
        }
        return FitSpec(
            target_epsilon=self.epsilon,
            method=self.method,  # type: ignore[arg-type]
            text_field="context",
            privacy_unit=UNIT,
            max_tokens=MAX_TOKENS,
            seed=self.seed,
            threads=threads,
            **{name: value for name, value in given.items() if value is not None},
        )


def simulated(plan: TrainingPlan, trial: Trial) -> TrainingPlan:
    """The plan with fewer units a step, under its own noise on their mean."""
    plan = plan.model_copy(update={"learning_rate": plan.learning_rate * trial.rate})
    if not trial.units or plan.privacy is None or trial.units >= plan.batch_size:
        return plan
    noise = plan.privacy.noise_multiplier * trial.units / plan.batch_size
    privacy = plan.privacy.model_copy(update={"noise_multiplier": noise})
    return plan.model_copy(update={"batch_size": trial.units, "privacy": privacy})


def run(trial: Trial, phee: Path, threads: int, records: int) -> dict[str, Any]:
    """Train, judge, throw away."""
    configure_cpu(threads)
    torch.manual_seed(trial.seed)
    spec = trial.spec(threads)
    base = load_base(trial.model, spec)
    choice = adapter_plan(spec, public_facts(base, n_units=1))
    if trial.head is not None:
        choice = choice.model_copy(update={"head_r": trial.head or None})
    with tempfile.TemporaryDirectory() as folder:
        held_out = _prepared(base, phee / "dev.jsonl", Path(folder) / "dev", records)
        before = _nats(base.model, held_out)
        data = prepare(
            str(phee / "train.jsonl"),
            DataSpec(**{name: getattr(spec, name) for name in DataSpec.model_fields}),
            base.tokenizer,
            MAX_TOKENS,
            Path(folder) / "train",
            trial.seed,
            vocabulary=base.vocabulary,
        )
        plan = make_plan(spec, public_facts(base, data.n_units))
        plan = simulated(plan.model_copy(update={"adapter": choice}), trial)
        model, loss = trainable(base, spec, choice, ALONE)
        private = Path(folder) / "private"
        private.mkdir()
        began = time.monotonic()
        train(
            Run(
                loss=loss,
                dataset=data,
                plan=plan,
                vocabulary=base.vocabulary,
                private_folder=private,
                microbatch_tokens=spec.microbatch_tokens,
                form=Form(spec.per_unit_gradients),
                checkpoint_every=10**6,
                on_progress=lambda progress: None,
                on_private_metrics=lambda metrics: None,
            ),
            resume=False,
        )
        seconds = time.monotonic() - began
        model.eval()
        after = _nats(model, held_out)
    assert plan.privacy is not None
    return {
        **{name: value for name, value in vars(trial).items() if value is not None},
        "simulated": plan.batch_size == trial.units,
        "steps": plan.steps,
        "learning_rate": plan.learning_rate,
        "trained": sum(p.numel() for p in loss.parameters() if p.requires_grad),
        "base": before,
        "fitted": after,
        "seconds": round(seconds),
    }


def _prepared(base: LoadedModel, path: Path, folder: Path, records: int) -> TokenizedDataset:
    lines = path.read_text(encoding="utf-8").splitlines()[:records]
    texts = [json.loads(line)["context"] for line in lines]
    return prepare(texts, DataSpec(), base.tokenizer, MAX_TOKENS, folder, 0)


def _nats(model: Any, data: TokenizedDataset) -> float:
    scores = unit_scores(model, data, MAX_TOKENS)
    return float(scores.nats_U.sum() / scores.tokens_U.sum())


def main() -> None:
    """One trial, or the same with several values of one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="with train.jsonl and dev.jsonl")
    parser.add_argument("--model", default="taciturn/tiny-medical")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rank", type=int)
    parser.add_argument("--head", type=int)
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--clip", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--records", type=int, default=100, help="of dev.jsonl that are judged")
    given = parser.parse_args()
    if given.folder is None or not (given.folder / "train.jsonl").is_file():
        print("skipped: give the folder that holds PHEE's train.jsonl and dev.jsonl")
        return
    for rate in given.rate:
        trial = Trial(
            given.model,
            given.epsilon,
            rate,
            given.rank,
            given.head,
            None if given.targets is None else tuple(given.targets),
            given.clip,
            given.batch,
            given.steps,
            given.units,
            given.seed,
            given.method,
        )
        print(json.dumps(run(trial, given.folder, given.threads, given.records)), flush=True)


if __name__ == "__main__":
    main()
