"""Trials of the defaults of private fits, SIMULATED: few units a step under the noise of many.

What a step of a private fit gives is the mean of B units' clipped gradients, with noise of sigma C
/ B on it. Drawing a few units and adding the noise that B would have had gives the same noise for a
small part of the arithmetic, and a noisier signal: figures are a little worse than those of the fit
that they stand for, by how much `--units` shows. What is trained so is NOT private, so it is thrown
away, and no figure of this script stands where figures of private fits do.

    python bench/tuning.py PHEE --model MODEL --epsilon 8 3 --rate 0.25 1 --rank 4 16

runs every combination of what is given, and prints a line of JSON for each: nats per token on
records of PHEE's dev.jsonl, of the base and of what was trained (Sun et al., EMNLP 2022, MIT
licence; not part of this repository). `--variant shrunk rarer` tries what differs around the kernel
(bench/evidence/tried.py). With `--trials FILE.jsonl` the lines are kept there, and

    python bench/tuning.py --trials FILE.jsonl --table --out bench/results/tuning.json

says of everything in that file how much of the shipped settings' gain it makes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from evidence.figures import Table, add_out, keep
from evidence.tried import SHIPPED, VARIANTS, weighed
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.model import lora
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.engine.model.loss import CausalLmLoss, can_pack
from taciturn.engine.model.subspace import Subspace, activation_subspaces, own_text, unigram
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.training.batch import BatchLimits, microbatches
from taciturn.engine.training.mechanism import planned_mechanism
from taciturn.engine.training.step import Streams, private_step
from taciturn.local.estimate import configure_cpu, public_facts
from taciturn.planning.plan import TrainingPlan, make_plan
from taciturn.spec import DataSpec, FitSpec

UNIT = "split_part(id,'_',1)"
MAX_TOKENS = 128
WIDEST = 16
"""The highest rank whose directions are looked for once, for all trials."""


@dataclass(frozen=True)
class Trial:
    """What differs from the defaults; None is the default.

    Attributes:
        rate: factor on the default learning rate.
        head: rank of the adapter on the output layer; 0 for none.
        units: drawn in a step, in expectation; 0 for as many as the plan has, which is private.
        fields: of the plan, set as given: beta1, average_decay, learning_rate.
        variant: of the step, around the kernel.
    """

    epsilon: float
    rate: float
    rank: int | None
    head: int | None
    clip: float | None
    targets: tuple[str, ...] | None
    batch: int | None
    steps: int | None
    units: int
    seed: int
    fields: tuple[tuple[str, Any], ...] = ()
    variant: str = SHIPPED

    def differences(self) -> str:
        """What is not as shipped, in words."""
        given = {
            "rate x": None if self.rate == 1 else f"{self.rate:g}",
            "rank": self.rank,
            "head's rank": self.head,
            "clip": self.clip,
            "targets": None if self.targets is None else ", ".join(self.targets),
            "batch": self.batch,
            "steps": self.steps,
            **dict(self.fields),
        }
        said = [f"{name} {value}" for name, value in given.items() if value is not None]
        own = [] if self.variant == SHIPPED and said else [self.variant]
        return ", ".join([*own, *said])

    def spec(self) -> FitSpec:
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
            text_field="context",
            privacy_unit=UNIT,
            max_tokens=MAX_TOKENS,
            seed=self.seed,
            **{name: value for name, value in given.items() if value is not None},
        )


class Bench:
    """What all trials share: the base model, the units, and what the base predicts of others."""

    def __init__(
        self, model: str, phee: Path, folder: Path, records: int, dtype: str | None
    ) -> None:
        fields = {"dtype": dtype} if dtype else {}
        spec = FitSpec(target_epsilon=1, text_field="context", privacy_unit=UNIT, **fields)
        self.name = model
        self.base = load_base(model, spec)
        self._held_out = _prepared(self.base, phee / "dev.jsonl", folder / "dev", records)
        self._data = prepare(
            str(phee / "train.jsonl"),
            DataSpec(**{name: getattr(spec, name) for name in DataSpec.model_fields}),
            self.base.tokenizer,
            MAX_TOKENS,
            folder / "train",
            0,
            vocabulary=self.base.vocabulary,
        )
        self.nats = _nats(self.base.model, self._held_out)

    def run(self, trial: Trial) -> dict[str, Any]:
        """Train, judge, throw away."""
        began = time.monotonic()
        spec = trial.spec()
        plan = make_plan(spec, public_facts(self.base, self._data.n_units))
        choice = plan.adapter
        if trial.head is not None:
            choice = choice.model_copy(update={"head_r": trial.head or None})
            ranks, head = lora._ranks(self.base.model, choice), lora._head_name(self.base.model)
            if trial.head and head not in ranks:
                raise SystemExit(
                    f"--head {trial.head} is the rank of an adapter on {head}, which --targets "
                    "leaves out; name it there, too"
                )
        rate = plan.learning_rate * trial.rate
        fields = {"adapter": choice, "learning_rate": rate, **dict(trial.fields)}
        plan = plan.model_copy(update=fields)
        drawn = _simulated(plan, trial.units)
        with _public_facts_once():
            model = lora.attach(copy.deepcopy(self.base.model), choice)
        loss = CausalLmLoss(model)
        parameters = trainable_parameters(loss)
        variant = VARIANTS[trial.variant]
        state = variant.state(parameters, plan.optimizer(), private=True)
        mechanism, streams = planned_mechanism(drawn, tuple(parameters)), Streams.fresh()
        # One unit at a time: of a small draw, larger microbatches would be mostly fillers.
        limits = BatchLimits(MAX_TOKENS, 1, MAX_TOKENS, packed=can_pack(loss))
        with weighed(variant, lambda: _frequencies(_Same(self.base.model))):
            for _ in range(plan.steps):
                private_step(loss, self._data, mechanism, state, streams, limits)
        state.finish()
        seconds = time.monotonic() - began
        assert drawn.privacy is not None
        return {
            "differs": trial.differences(),
            "epsilon": trial.epsilon,
            "seed": trial.seed,
            "units": trial.units,
            "model": Path(self.name).name,
            "simulated": drawn.batch_size < plan.batch_size,
            "batch": plan.batch_size,
            "steps": plan.steps,
            "learning_rate": plan.learning_rate,
            "trained": sum(each.numel() for each in parameters.values()),
            "base": self.nats,
            "fitted": _nats(model, self._held_out),
            "seconds": round(seconds),
        }


def _simulated(plan: TrainingPlan, units: int) -> TrainingPlan:
    """The plan with fewer units a step, under its own noise on their mean."""
    if not units or units >= plan.batch_size:
        return plan
    assert plan.privacy is not None
    noise = plan.privacy.noise_multiplier * units / plan.batch_size
    privacy = plan.privacy.model_copy(update={"noise_multiplier": noise})
    return plan.model_copy(update={"batch_size": units, "privacy": privacy})


@contextmanager
def _public_facts_once() -> Iterator[None]:
    """What is learned from the base's own text, once for all trials: it takes minutes."""
    before = lora.own_text, lora.activation_subspaces, lora.unigram
    lora.own_text = lambda model, seed: _text(_Same(model))  # type: ignore[assignment]
    lora.activation_subspaces = _subspaces  # type: ignore[assignment]
    lora.unigram = lambda model, text: _frequencies(_Same(model))  # type: ignore[assignment]
    try:
        yield
    finally:
        lora.own_text, lora.activation_subspaces, lora.unigram = before


class _Same:
    """A copy of the base: all are alike."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same)


@lru_cache
def _text(same: _Same) -> torch.Tensor:
    return own_text(same.model, 0)


@lru_cache
def _frequencies(same: _Same) -> torch.Tensor:
    return unigram(same.model, _text(same))


@lru_cache
def _widest(same: _Same, names: tuple[str, ...]) -> dict[str, Subspace]:
    ranks = dict.fromkeys(names, WIDEST)
    return activation_subspaces(same.model, ranks, _text(same), 0)


def _subspaces(model: Any, ranks: dict[str, int], text: Any, seed: int) -> dict[str, Subspace]:
    names = [name for name, module in model.named_modules() if lora._is_linear(module)]
    found = _widest(_Same(model), tuple(names))
    return {
        name: replace(
            found[name],
            directions_RD=found[name].directions_RD[:rank].clone(),
            energy_R=found[name].energy_R[:rank].clone(),
        )
        for name, rank in ranks.items()
        if name in found
    }


def _prepared(base: LoadedModel, path: Path, folder: Path, records: int) -> TokenizedDataset:
    lines = path.read_text(encoding="utf-8").splitlines()[:records]
    texts = [json.loads(line)["context"] for line in lines]
    return prepare(texts, DataSpec(), base.tokenizer, MAX_TOKENS, folder, 0)


@torch.no_grad()
def _nats(model: Any, data: TokenizedDataset) -> float:
    """Per token; one record after the other, which is quick where there are few."""
    loss = CausalLmLoss(model.eval())
    device = next(model.parameters()).device
    groups = microbatches(data, np.arange(data.n_units), BatchLimits(MAX_TOKENS, 1, MAX_TOKENS))
    nats = tokens = 0.0
    for part in (part.to(device) for group in groups for part in group):
        counted = (part.loss_weights_BT > 0).sum().item()
        nats += loss(part).sum().item() * counted
        tokens += counted
    return nats / tokens


def table(trials: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What each trial makes of the gain of the shipped settings, by model and epsilon.

    Of several trials with the same settings, which differ by chance alone: mean (least to most).
    """
    kinds = sorted({(trial["model"], trial["epsilon"]) for trial in trials})
    gains: dict[str, dict[tuple[str, float], list[float]]] = {}
    for trial in trials:
        kind = trial["model"], trial["epsilon"]
        gain = trial["base"] - trial["fitted"]
        gains.setdefault(trial["differs"], {}).setdefault(kind, []).append(gain)
    lacking = [kind for kind in kinds if kind not in gains.get(SHIPPED, {})]
    if lacking:
        raise SystemExit(f"no trial of the shipped settings yet for {lacking}; run one first")
    shipped = {kind: fmean(gains[SHIPPED][kind]) for kind in kinds}
    shown = Table("what differs", *(f"{model}, epsilon = {epsilon:g}" for model, epsilon in kinds))
    for differs, found in gains.items():
        cells = []
        for kind in kinds:
            shares = [gain / shipped[kind] for gain in found.get(kind, ())]
            several = f" ({min(shares):.0%} to {max(shares):.0%})" if len(shares) > 1 else ""
            cells.append(f"{fmean(shares):.0%}{several}" if shares else "")
        shown.add(differs, *cells)
    return shown.rows


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> None:
    """Every combination of what is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="with train.jsonl and dev.jsonl")
    parser.add_argument("--model", default="taciturn/tiny-medical")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0])
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rank", type=int, nargs="+", default=[None])
    parser.add_argument("--head", type=int, nargs="+", default=[None])
    parser.add_argument("--clip", type=float, nargs="+", default=[None])
    parser.add_argument("--targets", nargs="+", help="adapted modules, and no others")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, nargs="+", default=[None])
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", type=_field, nargs="+", default=[], help="beta1=0.8, of the plan")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--records", type=int, default=100, help="of dev.jsonl that are judged")
    parser.add_argument("--variant", choices=VARIANTS, nargs="+", default=[SHIPPED])
    parser.add_argument("--trials", type=Path, help="file of lines, to which these are added")
    parser.add_argument("--table", action="store_true", help="of the trials in that file")
    add_out(parser)
    given = parser.parse_args()
    if given.table:
        if given.trials is None:
            parser.error("--table needs --trials FILE.jsonl, which earlier trials were added to")
        lines = given.trials.read_text(encoding="utf-8").splitlines()
        keep(given.out, {"SIMULATED": table([json.loads(line) for line in lines])})
        return
    if given.folder is None or not (given.folder / "train.jsonl").is_file():
        print("skipped: give the folder that holds PHEE's train.jsonl and dev.jsonl")
        return
    configure_cpu(given.threads)
    targets = None if given.targets is None else tuple(given.targets)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.model, given.folder, Path(folder), given.records, given.dtype)
        every = (given.epsilon, given.rank, given.head, given.clip, given.steps, given.rate)
        for epsilon, rank, head, clip, steps, rate, variant in itertools.product(
            *every, given.variant
        ):
            trial = Trial(
                epsilon,
                rate,
                rank,
                head,
                clip,
                targets,
                given.batch,
                steps,
                given.units,
                given.seed,
                tuple(given.set),
                variant,
            )
            line = json.dumps(bench.run(trial))
            print(line, flush=True)
            if given.trials is not None:
                with given.trials.open("a", encoding="utf-8") as trials:
                    trials.write(line + "\n")


if __name__ == "__main__":
    main()
