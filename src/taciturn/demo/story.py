"""The quickstart's story: the same notes, fitted without and with privacy, asked the same thing."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from taciturn._version import __version__
from taciturn.demo.result import DemoResult, FitSettings, ModelOutcome, Sample, Secret
from taciturn.embedded import TINY_MEDICAL
from taciturn.embedded.notes import (
    SECRET,
    SECRET_ALTERNATIVES,
    SECRET_PATIENT_ID,
    SECRET_PROMPT,
    SECRET_TEMPLATE,
    held_out_notes,
    patient_notes,
)
from taciturn.engine.training.loop import EpsilonCurve
from taciturn.llm import LLM
from taciturn.planning.plan import TrainingPlan
from taciturn.spec import FitFields
from taciturn.worker import Observer

PREPARATION = (
    "id, json_extract_string(context, '$.patient_id') AS patient_id, "
    "json_extract_string(context, '$.text') AS text"
)
_TELLTALE = "pancreatic"
_CONTROL_PROMPT = "Julien Lambert suffers"
_ORDINARY_PROMPTS = (
    "The patient was admitted with",
    "On examination",
    "Treatment was started with",
)
_ASKED = 5


@dataclass(frozen=True, slots=True)
class Narrator:
    """Who is told what happens; the command line draws it.

    Attributes:
        stage: called with a sentence when a new part begins.
        observer: called with a label; gives the callbacks of the fit that starts.
    """

    stage: Callable[[str], None]
    observer: Callable[[str], Observer]


def tell(seed: int, epsilon: float, narrator: Narrator) -> DemoResult:
    """Run the whole story and measure it. The notes are invented, so all of it may be shown."""
    narrator.stage("Inventing patient notes; one patient's secret is among them.")
    notes = pd.DataFrame(patient_notes(seed))
    held_out = pd.DataFrame(held_out_notes(seed))
    base = LLM(TINY_MEDICAL)
    narrator.stage("Asking the base model, which has seen none of them.")
    base_outcome, n_candidates = _measure(base, held_out, seed)
    narrator.stage("Fitting WITHOUT privacy: target_epsilon is unlimited.")
    open_fit, open_settings, _ = _fit(notes, "unlimited", seed, narrator, "without privacy")
    open_outcome, _ = _measure(open_fit, held_out, seed)
    narrator.stage(f"Fitting WITH privacy: epsilon {epsilon:g} per patient.")
    private_fit, private_settings, plan = _fit(notes, epsilon, seed, narrator, "with privacy")
    private_outcome, _ = _measure(private_fit, held_out, seed)
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
        n_notes=len(notes),
        n_held_out_patients=_patients(held_out),
        versions=_versions(),
        n_candidates=n_candidates,
    )


def _fit(
    notes: pd.DataFrame, epsilon: float | str, seed: int, narrator: Narrator, label: str
) -> tuple[LLM, FitSettings, TrainingPlan]:
    fields: FitFields = {
        "select": PREPARATION,
        "text_field": "text",
        "privacy_unit": "patient_id",
        "target_epsilon": epsilon,  # type: ignore[typeddict-item]
        "seed": seed,
    }
    if epsilon == "unlimited":
        # Enough to memorise, as a careless fine-tuning does.
        fields |= {"method": "full", "epochs": 5, "batch_size": 16, "learning_rate": 2e-3}
    else:
        # Short, so that the whole demo takes minutes; `fit` by itself trains for longer. Few steps
        # on many units leave more signal over noise than many on few; the rate makes up for them.
        fields |= {"steps": 8, "batch_size": 320, "learning_rate": 2e-2}
    start = time.monotonic()
    plans: list[TrainingPlan] = []
    observer = narrator.observer(label)

    def on_plan(plan: TrainingPlan) -> None:
        plans.append(plan)
        observer.on_plan(plan)

    watched = Observer(on_plan, observer.on_progress, observer.on_private_metrics)
    model = LLM(TINY_MEDICAL).fit(notes, observer=watched, **fields)
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
        sampling_probability=plan.sampling_probability if privacy else None,
        l2_clip_norm=privacy.l2_clip_norm if privacy else None,
        noise_multiplier=privacy.noise_multiplier if privacy else None,
        seconds=seconds,
    )


def _measure(model: LLM, held_out: pd.DataFrame, seed: int) -> tuple[ModelOutcome, int]:
    """What a model says, and how many candidates its secret is ranked among."""
    prompts = [SECRET_PROMPT] * _ASKED + list(_ORDINARY_PROMPTS)
    frame = model.sample(prompts, temperature=0.1, max_new_tokens=40, seed=seed)
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
        samples=tuple(
            Sample(prompt, text)
            for prompt, text in zip(frame["prompt"], frame["text"], strict=True)
        ),
        secret_log_probability=secret.log_probability,
        held_out_loss=(scores.fitted or scores.base).nats_per_token,
        secret_rank=round(secret.exposure.rank),
        control_log_probability=model.log_probability(_CONTROL_PROMPT, SECRET),
    )
    return outcome, secret.exposure.size


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
