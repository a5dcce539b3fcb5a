"""One model on one corpus: base, ordinary and private fits, each measured once and kept."""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evidence.corpus import TEXT, UNIT, Corpus, phee
from evidence.ordinary import Setting, attach, keep, restore, search, train
from evidence.records import Records, Row, digest
from evidence.scores import Score, score, score_records, tokenized
from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.engine.model.files import base_digests
from taciturn.engine.model.load import LoadedModel, load_base, load_fitted
from taciturn.llm import LLM
from taciturn.local.estimate import configure_cpu, public_facts
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan, make_plan
from taciturn.reports.privacy import REPORT, read_report
from taciturn.spec import FitSpec, PerformanceSpec
from taciturn.worker.workspace import newest_step

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True, slots=True)
class Given:
    """What every script of this kind is told on its command line.

    Attributes:
        dtype: arithmetic of the fits. All scores are of float32.
        seed: of initial adapter weights and of ordinary fits' batches; private draws have none.
        work: where models and checkpoints are kept.
        resume: go on with runs that were killed.
    """

    model: str
    dtype: str
    threads: int
    seed: int
    work: Path
    resume: bool

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """The options of a command line."""
        parser.add_argument("--model", default=TINY_MEDICAL, help="as LLM(...) takes it")
        parser.add_argument(
            "--dtype",
            choices=("auto", "float32", "bfloat16"),
            default="float32",
            help="of the fits; auto: bfloat16 where this machine multiplies it natively",
        )
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--work", type=Path, default=RESULTS / "_parts", help="for models")
        parser.add_argument("--resume", action="store_true", help="go on with what was killed")

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> Given:
        """From a parsed command line; sets the number of threads."""
        configure_cpu(parsed.threads)
        dtype = native_dtype() if parsed.dtype == "auto" else parsed.dtype
        fields = (parsed.threads, parsed.seed, parsed.work, parsed.resume)
        return cls(parsed.model, dtype, *fields)


def native_dtype() -> str:
    """bfloat16 on a GPU and on CPUs that multiply it; float32 on others, where it is slower."""
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8") if flags.is_file() else ""
    fast = torch.cuda.is_available() or "avx512_bf16" in text or "amx_bf16" in text
    return "bfloat16" if fast else "float32"


class Bench:
    """Runs what was asked for, and keeps what it finds in `records`."""

    def __init__(self, given: Given, corpus: Corpus, records: Records) -> None:
        self.given, self.corpus, self.records = given, corpus, records
        self.subject = {"model": _named(given.model), "data": corpus.digest()}
        self._loaded: LoadedModel | None = None

    # --- the base

    def base(self) -> Row:
        """The base's own score on dev, and under the start tokens that it could be given."""
        return self.records.measured({**self.subject, "stage": "base"}, self._base)

    def _base(self) -> Row:
        base = self.load()
        starts = {}
        tokenizer, own = base.tokenizer, base.tokenizer.bos_token
        for name, token in start_tokens(tokenizer).items():
            tokenizer.bos_token = token
            found = score(base, base.model, self.corpus.dev).as_row()
            starts[name] = {"token": token, **found}
        tokenizer.bos_token = own
        dev = score(base, base.model, self.corpus.dev).as_row()
        return {"corpus": self.corpus.name, "dev": dev, "start": own, "starts": starts}

    # --- ordinary fits

    def search(self, first: Sequence[Setting], *, epochs: bool = True) -> Row:
        """The best ordinary fit on dev, from these settings on; each is a run of its own.

        Args:
            epochs: other numbers of epochs are tried, too, not only other rates.
        """
        found: dict[Setting, Row] = {}

        def run(setting: Setting) -> float:
            found[setting] = self.ordinary(setting)
            return float(found[setting]["dev"]["nats"])

        return found[search(run, first, epochs=epochs)]

    def ordinary(self, setting: Setting) -> Row:
        """One ordinary fit."""
        key = {**self._key("ordinary"), **setting.as_key()}
        return self.records.measured(key, lambda: self._ordinary(key, setting))

    def _ordinary(self, key: Mapping[str, Any], setting: Setting) -> Row:
        folder = self._folder(key)
        print(f"  {folder.name}: {setting}", flush=True)
        self._check_fresh(folder, folder / "checkpoint.pt")
        base = self.fresh()
        model = attach(base.model, setting, self.given.seed)
        texts = [text for _, text in self.corpus.train]
        with tempfile.TemporaryDirectory() as scratch:
            data = tokenized(base, texts, Path(scratch) / "train")
            dev = tokenized(base, self.corpus.dev, Path(scratch) / "dev")
            found = train(
                model,
                data,
                setting,
                lambda each: score_records(base, each, dev),
                folder,
                self.given.seed,
                autocast=self.given.dtype == "bfloat16",
            )
        return {**self._about(key), **found}

    # --- private fits

    def private(self, epsilon: float, fields: Mapping[str, Any]) -> Row:
        """One complete private fit with `taciturn.LLM.fit`; `fields` are what is not default."""
        spec, plan = self._spec(epsilon, fields), self.plan(epsilon, fields)
        key = {
            **self._key("private"),
            "epsilon": epsilon,
            "plan": plan.model_dump(exclude={"reasons"}, mode="json"),
        }
        return self.records.measured(key, lambda: self._private(key, spec))

    def plan(self, epsilon: float, fields: Mapping[str, Any]) -> TrainingPlan:
        """What `private` would run."""
        spec = self._spec(epsilon, fields)
        return make_plan(spec, public_facts(self.load(), self.corpus.n_units))

    def _private(self, key: Mapping[str, Any], spec: FitSpec) -> Row:
        folder = self._folder(key)
        print(f"  {folder.name}: epsilon {key['epsilon']:g}", flush=True)
        self._loaded = None
        if not (folder / REPORT).is_file():
            self._check_fresh(folder, folder / "private")
            begun = newest_step(folder / "private") is not None
            if not begun:
                shutil.rmtree(folder, ignore_errors=True)  # killed before there was anything
                _clock(folder).unlink(missing_ok=True)
            _fit(self.given.model, self.corpus, spec, folder, resume=begun)
        report = read_report(folder / REPORT)
        base, fitted = load_fitted(folder, report, PerformanceSpec(dtype="float32"))
        dev = score(base, fitted, self.corpus.dev)
        seconds = _seconds(folder)
        return {
            **self._about(key),
            "dev": dev.as_row(),
            "epsilon": report.epsilon,
            "delta": report.delta,
            "n_units": report.n_units,
            "steps": report.steps,
            "batch": report.expected_batch_size,
            "noise_multiplier": report.noise_multiplier,
            "trained": report.trainable_parameters,
            "minutes": seconds / 60,
        }

    def _spec(self, epsilon: float, fields: Mapping[str, Any]) -> FitSpec:
        return FitSpec(
            target_epsilon=epsilon,
            text_field=TEXT,
            privacy_unit=UNIT,
            seed=self.given.seed,
            threads=self.given.threads,
            dtype=self.given.dtype,
            **fields,
        )

    # --- what was chosen

    def rows(self, stage: str, **wanted: object) -> list[Row]:
        """Rows of this model and corpus."""
        return self.records.rows(**self.subject, stage=stage, **wanted)

    def best(self, stage: str, **wanted: object) -> Row | None:
        """The best of them on dev, whose model is still there to be used."""
        rows = [row for row in self.rows(stage, **wanted) if self._folder(row["key"]).is_dir()]
        return min(rows, key=lambda row: row["dev"]["nats"], default=None)

    def opened(self, row: Row | None, which: str = "best") -> tuple[LoadedModel, Any]:
        """Base and model of a row; without a row, the base alone."""
        if row is None:
            base = self.load()
            return base, base.model
        folder = self._folder(row["key"])
        if row["key"]["stage"] == "private":
            return load_fitted(
                folder, read_report(folder / REPORT), PerformanceSpec(dtype="float32")
            )
        key = row["key"]
        setting = Setting(key["method"], key["rate"], rank=key["rank"])
        base = self.fresh()
        return base, restore(attach(base.model, setting, key["seed"]), folder, which)

    def score(self, row: Row | None, texts: Sequence[str]) -> Score:
        """That of a row's model, or of the base."""
        return score(*self.opened(row), texts)

    def kept(self, key: Mapping[str, Any], model: Any) -> Row:
        """Keep the weights that were trained, to be opened again; what is always recorded."""
        keep(model, self._folder(key))
        return self._about(key)

    # --- places and names

    def _key(self, stage: str) -> dict[str, Any]:
        fits = {"dtype": self.given.dtype, "seed": self.given.seed}
        return {**self.subject, **fits, "stage": stage}

    def _about(self, key: Mapping[str, Any]) -> Row:
        return {"corpus": self.corpus.name, "run": self._folder(key).name}

    def _folder(self, key: Mapping[str, Any]) -> Path:
        return self.given.work / f"{key['stage']}-{digest(key)}"

    def _check_fresh(self, folder: Path, begun: Path) -> None:
        if begun.exists() and not self.given.resume:
            raise SystemExit(
                f"{folder} holds a run that was killed: --resume goes on with it; to begin it "
                "anew, remove the folder"
            )

    def load(self) -> LoadedModel:
        """The base in float32, to be left as it is."""
        if self._loaded is None:
            self._loaded = self.fresh()
        return self._loaded

    def fresh(self) -> LoadedModel:
        """The base in float32, to be changed."""
        self._loaded = None
        gc.collect()
        return load_base(self.given.model, PerformanceSpec(dtype="float32"))


def start_tokens(tokenizer: Any) -> dict[str, str | None]:
    """What a text could begin with, by the names that the tokenizer has for it; each token once.

    What its files call bos is among them, also where the product begins texts with another token.
    """
    found: dict[str, str | None] = {"none": None}
    filed = tokenizer.init_kwargs.get("bos_token")
    named = [("bos in its files", None if filed is None else str(filed))]
    roles = ("bos", "eos", "pad", "unk", "sep", "cls")
    named += [(role, getattr(tokenizer, f"{role}_token", None)) for role in roles]
    for name, token in named:
        if token is not None and token not in found.values():
            found[name] = token
    return found


def _named(model: str) -> dict[str, str]:
    """A model by its name and the digest of its weights."""
    path = model_path() if model == TINY_MEDICAL else Path(model).expanduser()
    found = base_digests(model)
    return {"name": model if model == TINY_MEDICAL else path.name, "digest": digest(found)}


def _fit(model: str, corpus: Corpus, spec: FitSpec, folder: Path, *, resume: bool) -> None:
    path = corpus.write(folder.parent)
    began = time.monotonic() - _seconds(folder)

    def progress(news: Any) -> None:
        _clock(folder).write_text(json.dumps(time.monotonic() - began), encoding="utf-8")
        if news.step % 5 == 0 or news.step == news.steps:
            print(f"    step {news.step} of {news.steps}", flush=True)

    fields = {name: getattr(spec, name) for name in spec.model_fields_set}
    llm = LLM(model, dtype=spec.dtype)
    llm.fit(
        str(path), output=folder, resume=resume, observer=Observer(on_progress=progress), **fields
    )


def _clock(folder: Path) -> Path:
    """Beside a run's folder: how long it has taken, over all processes that were killed."""
    return folder.with_name(f"{folder.name}.seconds")


def _seconds(folder: Path) -> float:
    path = _clock(folder)
    return float(path.read_text(encoding="utf-8") or 0) if path.is_file() else 0.0


def phee_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of a script that measures on PHEE."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="PHEE's")
    Given.add_to(parser)
    parser.add_argument("--final", action="store_true", help="read test.jsonl, and that alone")
    parser.add_argument("--table", action="store_true", help="measure nothing; print what is there")
    parser.add_argument("--without-secret", action="store_true")
    parser.add_argument("--records", type=int, help="of each file; a trial of the script itself")
    parser.add_argument("--dev", type=int, help="choose by the first so many texts of dev.jsonl")
    parser.add_argument("--results", type=Path, default=RESULTS / "phee.jsonl")
    return parser


def on_phee(given: argparse.Namespace) -> Bench | None:
    """Return the bench on PHEE's folder; None, and says so, where it is not there."""
    if given.folder is None or not (given.folder / "train.jsonl").is_file():
        print("skipped: give the folder that holds PHEE's train.jsonl, dev.jsonl and test.jsonl")
        return None
    corpus = phee(given.folder, secret=not given.without_secret)
    if given.records is not None:
        corpus = corpus.first(given.records)
    if given.dev is not None:
        corpus = replace(corpus, dev=corpus.dev[: given.dev])
    return Bench(Given.of(given), corpus, Records(given.results))
