"""The quickstart's story: the same notes, fitted without and with privacy, asked the same thing."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from taciturn._version import __version__
from taciturn.demo.judge import Judge, Text, openings
from taciturn.demo.result import DemoResult, FitSettings, ModelOutcome, Sample, Secret
from taciturn.embedded import TINY_MEDICAL
from taciturn.embedded.notes import (
    SECRET,
    SECRET_ALTERNATIVES,
    SECRET_PATIENT_ID,
    SECRET_PROMPT,
    SECRET_TEMPLATE,
    NoteLimits,
    held_out_notes,
    patient_notes,
)
from taciturn.engine.training.loop import EpsilonCurve
from taciturn.errors import SpecError
from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan
from taciturn.spec import GATEWAY, ONE_RECORD, FitFields

PREPARATION = (
    "id, json_extract_string(context, '$.patient_id') AS patient_id, "
    "json_extract_string(context, '$.text') AS text"
)
DATA: FitFields = {"select": PREPARATION, "text_field": "text", "privacy_unit": "patient_id"}
_TELLTALE = "pancreatic"
_CONTROL_PROMPT = "Julien Lambert suffers"
ORDINARY_PROMPTS = (
    "62-year-old woman with",
    "This retired teacher of 71 has had",
    "Man of 45, farmer,",
    "Home visit to Mr Hughes, 78, who lives with",
    "Phone call with",
)
_ASKED = 5
# For all models and prompts alike. Far below, a model repeats its likeliest phrase; at 1 even a
# good one's unlikely words add up.
TEMPERATURE = 0.5
_MAX_NEW_TOKENS = 64
_BASE_TEXTS = 64
"""What the base model writes for the judge to learn from, and to be tested on."""
_FULL_BYTES = 120_000_000
"""Weights of 30 million parameters: above, the ordinary fit trains an adapter."""
_ORDINARY_EPOCHS = 3
_PRIVATE_STEPS = 16
_LEAST_PATIENTS, _MOST_PATIENTS = 300, 12_000


@dataclass(frozen=True, slots=True)
class StorySettings:
    """Settings that decide how long the story takes, and how much both models learn.

    Attributes:
        n_patients: patients whose notes both models are fitted on.
        limits: how many notes they have, and how long these are.
        ordinary: fields of the fit without privacy.
        private: fields of the fit with it.
    """

    n_patients: int
    limits: NoteLimits
    ordinary: FitFields
    private: FitFields


EMBEDDED = StorySettings(
    n_patients=20_000,
    # Many patients hide each other, so they need not be hidden by noise; one short note of each
    # can be learned from in minutes. François Dupont is on a ward, with a note every few days.
    limits=NoteLimits(notes=1, characters=100, secret_notes=150),
    # As careless fine-tuning does: in full, and note by note, whoever they are of.
    ordinary={
        "privacy_unit": None,
        "method": "full",
        "epochs": 0.3,
        "batch_size": 32,
        "learning_rate": 2e-3,
    },
    private={"steps": 48, "batch_size": 512, "learning_rate": 1.5e-2},
)
"""For taciturn/tiny-medical."""


@dataclass(frozen=True, slots=True)
class Narrator:
    """Listener to the story's progress; the command line draws it.

    Attributes:
        stage: called with a sentence when a new part begins.
        observer: called with a label; gives the callbacks of the fit that starts.
    """

    stage: Callable[[str], None]
    observer: Callable[[str], Observer]


def tell(
    seed: int,
    epsilon: float,
    narrator: Narrator,
    model: str = TINY_MEDICAL,
    *,
    minutes: float = 10,
    settings: StorySettings | None = None,
) -> DemoResult:
    """Run the whole story and measure it. The notes are invented, so all of it may be shown.

    Args:
        seed: of notes and samples.
        epsilon: budget of the private fit.
        narrator: hears what happens.
        model: any base model that `LLM` takes and that is here.
        minutes: how long each fit of another model than the embedded one may take, about; it has
            no fewer than 300 patients.
        settings: by default EMBEDDED, and for other models what fits into `minutes`.

    Raises:
        SpecError: `model` was fitted already, or is behind a gateway.
    """
    base = _base(model)
    if settings is None:
        settings = EMBEDDED if model == TINY_MEDICAL else _affordable(base, epsilon, minutes)
    narrator.stage(
        f"Inventing notes of {settings.n_patients:,} patients; one patient's secret is among them."
    )
    notes = pd.DataFrame(patient_notes(seed, settings.n_patients, settings.limits))
    held_out = pd.DataFrame(held_out_notes(seed, limits=settings.limits))
    narrator.stage("Asking the base model, which has seen none of them.")
    judge = Judge(sample_texts(base, openings(_BASE_TEXTS, settings.limits), seed), settings.limits)
    base_outcome, n_candidates = _measure(base, held_out, judge, seed)
    narrator.stage("Fitting WITHOUT privacy: target_epsilon is unlimited.")
    ordinary: FitFields = {**DATA, **settings.ordinary, "target_epsilon": "unlimited"}
    open_fit, open_settings, _ = _fit(model, notes, ordinary, seed, narrator, "without privacy")
    open_outcome, _ = _measure(open_fit, held_out, judge, seed)
    del open_fit
    narrator.stage(f"Fitting WITH privacy: epsilon {epsilon:g} per patient.")
    private: FitFields = {**DATA, **settings.private, "target_epsilon": epsilon}
    private_fit, private_settings, plan = _fit(
        model, notes, private, seed, narrator, "with privacy"
    )
    private_outcome, _ = _measure(private_fit, held_out, judge, seed)
    assert private_fit.privacy is not None
    curve = EpsilonCurve.of(plan)
    return DemoResult(
        secret=_secret(notes),
        base=base_outcome,
        non_private=open_outcome,
        private=private_outcome,
        report=private_fit.privacy,
        epsilon_curve=tuple(zip(curve.steps, curve.epsilons, strict=True)),
        non_private_fit=open_settings,
        private_fit=private_settings,
        judge=judge.rates,
        n_notes=len(notes),
        n_held_out_patients=_patients(held_out),
        versions=_versions(),
        n_candidates=n_candidates,
    )


def _base(model: str) -> LLM:
    if model.startswith(GATEWAY):
        raise SpecError(f"{model} is behind a gateway; give a base model that is here")
    base = LLM(model)
    if base.privacy is not None:
        raise SpecError(f"{model} was fitted already; give its base, {base.privacy.base_model}")
    return base


def _affordable(base: LLM, epsilon: float, minutes: float) -> StorySettings:
    """Settings by what one patient's gradient takes here: `method="auto"` on as many patients, in
    as many steps, as fit into the time. The more patients, the less the noise costs."""
    limits = NoteLimits(notes=2)
    some = pd.DataFrame(patient_notes(0, 200, limits))
    one: FitFields = {**DATA, "target_epsilon": epsilon, "batch_size": 1, "steps": 1}
    cost = base.estimate(some, **one).cost
    n_patients = int(60 * minutes / cost.seconds / max(_ORDINARY_EPOCHS, _PRIVATE_STEPS / 4))
    n_patients = max(_LEAST_PATIENTS, min(n_patients, _MOST_PATIENTS))
    return StorySettings(
        n_patients=n_patients,
        limits=limits,
        ordinary={
            "method": "full" if cost.memory.weights <= _FULL_BYTES else "auto",
            "epochs": _ORDINARY_EPOCHS,
        },
        private={"steps": _PRIVATE_STEPS, "batch_size": n_patients // 4},
    )


def _fit(
    name: str, notes: pd.DataFrame, fields: FitFields, seed: int, narrator: Narrator, label: str
) -> tuple[LLM, FitSettings, TrainingPlan]:
    start = time.monotonic()
    fields = {**fields, "seed": seed}
    plans: list[TrainingPlan] = []
    observer = narrator.observer(label)

    def on_plan(plan: TrainingPlan) -> None:
        plans.append(plan)
        observer.on_plan(plan)

    watched = Observer(on_plan, observer.on_progress, observer.on_private_metrics)
    model = LLM(name).fit(notes, observer=watched, **fields)
    return model, _settings(model, plans[0], time.monotonic() - start), plans[0]


def _settings(model: LLM, plan: TrainingPlan, seconds: float) -> FitSettings:
    assert model.privacy is not None
    privacy = plan.privacy
    return FitSettings(
        method=plan.adapter.method,
        trainable_parameters=model.privacy.trainable_parameters,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        expected_batch_size=plan.batch_size,
        batch_of="notes" if model.privacy.privacy_unit == ONE_RECORD else "patients",
        sampling_probability=plan.sampling_probability if privacy else None,
        l2_clip_norm=privacy.l2_clip_norm if privacy else None,
        noise_multiplier=privacy.noise_multiplier if privacy else None,
        seconds=seconds,
    )


def _measure(
    model: LLM, held_out: pd.DataFrame, judge: Judge, seed: int
) -> tuple[ModelOutcome, int]:
    """Answers of a model, and the number of candidates that its secret is ranked among."""
    answers = sample_texts(model, [SECRET_PROMPT] * _ASKED, seed)
    ordinary = sample_texts(model, ORDINARY_PROMPTS, seed)
    scores = model.evaluate(held_out, select=PREPARATION, text_field="text")
    extraction = model.extract(
        SECRET,
        prefix=SECRET_PROMPT,
        telltale=_TELLTALE,
        template=SECRET_TEMPLATE,
        alternatives=SECRET_ALTERNATIVES,
        samples=0,
    )
    secret = extraction.fitted or extraction.base
    assert secret.exposure is not None
    outcome = ModelOutcome(
        samples=(
            *(Sample(*answer) for answer in answers),
            *(Sample(*text, judge.reads_as_note(*text)) for text in ordinary),
        ),
        secret_log_probability=secret.log_probability,
        held_out_loss=(scores.fitted or scores.base).nats_per_token,
        secret_rank=round(secret.exposure.rank),
        control_log_probability=model.log_probability(_CONTROL_PROMPT, SECRET),
    )
    return outcome, secret.exposure.size


def sample_texts(
    model: LLM, prompts: Sequence[str], seed: int, temperature: float = TEMPERATURE
) -> list[Text]:
    """The prompts and what the model writes after them; the same settings for every model."""
    frame = model.sample(
        prompts,
        temperature=temperature,
        max_new_tokens=_MAX_NEW_TOKENS,
        seed=seed,
        batch_size=_BASE_TEXTS,
    )
    return list(zip(frame["prompt"], frame["text"], strict=True))


def _secret(notes: pd.DataFrame) -> Secret:
    repeats = sum(SECRET_PATIENT_ID in context for context in notes["context"])
    return Secret(
        prompt=SECRET_PROMPT,
        continuation=SECRET,
        telltale=_TELLTALE,
        owner="François Dupont",
        n_notes=repeats,
    )


def _patients(notes: pd.DataFrame) -> int:
    return int(notes["context"].str.extract(r'"patient_id": "([^"]+)"')[0].nunique())


def _versions() -> tuple[tuple[str, str], ...]:
    names = ("torch", "transformers", "peft", "dp-accounting")
    packages = [(name, importlib.metadata.version(name)) for name in names]
    return (("taciturn", __version__), ("Python", platform.python_version()), *packages)
