"""LLM, the one object a practitioner needs: fit, sample, evaluate, save."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from taciturn.engine import evaluation
from taciturn.engine.data.tokenize import prepare
from taciturn.engine.generation.sample import sample, stream
from taciturn.engine.model.load import LoadedModel, load_base, load_fitted
from taciturn.engine.training.plan import TrainingPlan, check_target, make_plan, max_tokens
from taciturn.errors import AdapterError, ModelError, SpecError
from taciturn.report import PrivacyReport
from taciturn.spec import DataSpec, FitFields, FitSpec, PerformanceSpec, SampleSpec, parse
from taciturn.worker import (
    REPORT,
    FitResult,
    Observer,
    estimate,
    fit,
    public_facts,
    release,
)

BASE_POLICY = "public (base model, no private data)"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Likelihood of a public text under the base model and, once fitted, the fitted one."""

    base: evaluation.Likelihood
    fitted: evaluation.Likelihood | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `fit` would do, and how many seconds its steps would take on this machine."""

    plan: TrainingPlan
    seconds: float


@dataclass(frozen=True, slots=True)
class _Size:
    n_units: int
    tokens_per_unit: float


class LLM:
    """A causal language model that can be fine-tuned without making it talk.

    >>> model = taciturn.LLM("taciturn/tiny-medical")
    >>> model.fit("notes.parquet", text_field="text", privacy_unit="patient_id", target_epsilon=3)
    >>> model.sample(["The patient"])
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
    ) -> None:
        """Name a model; it is loaded when first needed.

        Args:
            model: hub id, local folder, GGUF file, "taciturn/tiny-medical", or a folder that
                `save` wrote.
            device: "cpu", "cuda", "cuda:1", "mps"; by default the best there is.
            dtype: "float32" or "bfloat16"; by default bfloat16 on a GPU, float32 elsewhere.
            quantization: "int8" or "nf4": load the frozen base with fewer bits.
        """
        self.name = model
        self._performance = parse(
            PerformanceSpec, {"device": device, "dtype": dtype, "quantization": quantization}
        )
        self._base: LoadedModel | None = None
        self._fitted: Any = None
        self._plan: TrainingPlan | None = None
        self._privacy: PrivacyReport | None = None
        report = Path(model).expanduser() / REPORT
        if report.is_file():
            self._privacy = PrivacyReport.model_validate_json(report.read_text())

    @property
    def privacy(self) -> PrivacyReport | None:
        """The guarantee this model carries; None for a base model."""
        return self._privacy

    @property
    def policy(self) -> str:
        """The guarantee in one line, as it stands on every sample."""
        return BASE_POLICY if self._privacy is None else self._privacy.policy

    def fit(
        self,
        data: object,
        *,
        output: str | Path | None = None,
        resume: bool = False,
        observer: Observer | None = None,
        **fields: Unpack[FitFields],
    ) -> LLM:
        """Fine-tune on private text; `target_epsilon` says how private, or "unlimited" for not.

        Args:
            data: path, glob or URL of JSONL, CSV or Parquet; pandas or polars frame; Arrow table;
                `datasets.Dataset`; list of strings.
            output: folder for the result; its subfolder `private/` makes the run resumable.
                Without it the private state lives in a temporary folder that is removed.
            resume: go on with the interrupted run in `output`.
            observer: callbacks for the plan, progress and private metrics.
            fields: the fields of `taciturn.spec.FitSpec`. Unknown ones raise.
        """
        spec = parse(FitSpec, self._with_performance(dict(fields)))
        check_target(spec)
        if self._privacy is not None:
            raise ModelError(
                f"{self.name} is already fitted ({self.policy}); make a new LLM(...) of the base "
                "to fit again"
            )
        base = self._load(spec)
        folder = self._temporary() if output is None else Path(output).expanduser()
        try:
            result = fit(base, data, spec, folder, resume=resume, observer=observer)
        except BaseException:
            self._base = None
            raise
        self._take(result)
        return self

    def plan(
        self, data: object = None, *, n_units: int | None = None, **fields: Unpack[FitFields]
    ) -> TrainingPlan:
        """What `fit` would do, without doing it; give the data or its number of units."""
        spec = parse(FitSpec, self._with_performance(dict(fields)))
        base = self._load(spec)
        if n_units is None:
            n_units = self._size(data, spec).n_units
        return make_plan(spec, public_facts(base, n_units))

    def estimate(
        self, data: object = None, *, n_units: int | None = None, **fields: Unpack[FitFields]
    ) -> Estimate:
        """The plan, and how long it would take here.

        With data, the time follows from its real lengths, which are its owner's to see; with
        `n_units` alone, from 64 tokens per unit.
        """
        spec = parse(FitSpec, self._with_performance(dict(fields)))
        base = self._load(spec)
        size = _Size(n_units, 64.0) if n_units is not None else self._size(data, spec)
        plan = make_plan(spec, public_facts(base, size.n_units))
        self._base = None  # the estimate attaches adapters; fit must start from a clean base
        seconds = estimate(base, spec, plan, size.tokens_per_unit)
        return Estimate(plan, seconds)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 100,
        n: int = 1,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> pd.DataFrame:
        """Continue each prompt; a frame with columns prompt, text, policy, `n` rows per prompt."""
        spec = SampleSpec(
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            n=n,
            seed=seed,
            batch_size=batch_size,
        )
        base = self._load()
        rows = sample(self._model(), base.tokenizer, prompts, spec, base.context_length)
        frame = pd.DataFrame(
            {"prompt": [r.prompt for r in rows], "text": [r.text for r in rows]},
            columns=["prompt", "text"],
        )
        frame["policy"] = self.policy
        frame.attrs["policy"] = self.policy
        return frame

    def stream(self, prompt: str, spec: SampleSpec) -> Iterator[str]:
        """One continuation, piece by piece."""
        base = self._load()
        return stream(self._model(), base.tokenizer, prompt, spec, base.context_length)

    def evaluate(self, public_data: object, **fields: Unpack[FitFields]) -> Evaluation:
        """Perplexity on text that you declare public, under the base and the fitted model.

        The figures are exact and not noised: never use it on private rows whose owner has not
        agreed.
        """
        spec = parse(FitSpec, self._with_performance(dict(fields)))
        base = self._load()
        limit = max_tokens(spec, base.context_length)
        with tempfile.TemporaryDirectory() as folder:
            data_spec = _without_bound(spec)
            target = Path(folder) / "data"
            dataset = prepare(public_data, data_spec, base.tokenizer, limit, target, spec.seed)
            fitted = None
            if self._fitted is not None:
                fitted = evaluation.likelihood(self._fitted, dataset, limit)
            with self._base_model() as model:
                return Evaluation(evaluation.likelihood(model, dataset, limit), fitted)

    def log_probability(self, prompt: str, continuation: str) -> float:
        """Natural logarithm of the probability that `prompt` is continued by `continuation`."""
        base = self._load()
        return evaluation.log_probability(self._model(), base.tokenizer, prompt, continuation)

    def save(self, folder: str | Path) -> Path:
        """Write adapter, config, tokenizer, model card and privacy report; nothing private."""
        if self._fitted is None or self._privacy is None:
            raise AdapterError("there is nothing to save: call fit first")
        output = Path(folder).expanduser()
        if (output / REPORT).exists():
            raise AdapterError(f"{output} already holds a fitted model; choose another folder")
        release(self._fitted, self._load(), self._privacy, output)
        return output

    def _load(self, spec: PerformanceSpec | None = None) -> LoadedModel:
        if self._base is None:
            spec = spec or self._performance
            if self._privacy is None:
                self._base = load_base(self.name, spec)
            else:
                folder = Path(self.name).expanduser()
                self._base, self._fitted = load_fitted(folder, self._privacy.base_model, spec)
        return self._base

    def _model(self) -> Any:
        return self._load().model if self._fitted is None else self._fitted

    def _base_model(self) -> AbstractContextManager[Any]:
        name = self.name if self._privacy is None else self._privacy.base_model
        return evaluation.base_model(name, self._fitted, self._load().model, self._performance)

    def _take(self, result: FitResult) -> None:
        self._fitted, self._plan, self._privacy = result.model, result.plan, result.report

    def _with_performance(self, fields: dict[str, Any]) -> dict[str, Any]:
        own = self._performance.model_dump(include={"device", "dtype", "quantization"})
        for name, value in own.items():
            if value is not None and fields.setdefault(name, value) != value:
                raise SpecError(
                    f"{name}={fields[name]!r} differs from the {value!r} this LLM was made with"
                )
        return fields

    def _size(self, data: object, spec: FitSpec) -> _Size:
        if data is None:
            raise SpecError("plan needs the data, or n_units=...: how many units it has")
        base = self._load(spec)
        limit = max_tokens(spec, base.context_length)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "data"
            dataset = prepare(data, spec, base.tokenizer, limit, target, spec.seed)
            return _Size(dataset.n_units, dataset.n_tokens / dataset.n_units)

    def _temporary(self) -> Path:
        folder = tempfile.mkdtemp(prefix="taciturn-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder) / "output"


def _without_bound(spec: FitSpec) -> DataSpec:
    fields = {name: getattr(spec, name) for name in DataSpec.model_fields}
    return DataSpec(**{**fields, "privacy_unit": None})
