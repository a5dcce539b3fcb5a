"""One fit job, from spec to released folder: the same code for the SDK, the CLI and a cluster.

The output folder holds what may be shared; everything that depends on rows without the budget
having paid for it is in its subfolder `private/`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taciturn._version import __version__
from taciturn.accounting.compose import ACCOUNTANT
from taciturn.accounting.events import event_to_dict
from taciturn.card import model_card
from taciturn.engine.data.tokenize import TokenizedDataset, prepare
from taciturn.engine.model import adapter, lora
from taciturn.engine.model.load import LoadedModel, enable_checkpointing
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.verification import public_batch, verify
from taciturn.engine.training.allocator import keep_freed_memory
from taciturn.engine.training.checkpoint import full_disk_is_clear
from taciturn.engine.training.defaults import PublicFacts
from taciturn.engine.training.estimate import estimate_seconds
from taciturn.engine.training.loop import PrivateMetrics, Progress, Run, train
from taciturn.engine.training.plan import TrainingPlan, adapter_plan, make_plan, max_tokens
from taciturn.errors import CheckpointError, OutputError
from taciturn.report import PrivacyReport
from taciturn.spec import FitSpec

PRIVATE = "private"
REPORT = "privacy_report.json"
_PRIVATE_NOTICE = (
    "This folder holds values computed from private rows: tokenised text, metrics, checkpoints.\n"
    "No privacy budget paid for them. Do not share it; delete it when you no longer need to resume."
)


@dataclass(frozen=True, slots=True)
class Observer:
    """Who is told what while a job runs; each field defaults to nobody."""

    on_plan: Callable[[TrainingPlan], None] = lambda plan: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_private_metrics: Callable[[PrivateMetrics], None] = lambda metrics: None


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit job gives back."""

    model: Any
    report: PrivacyReport
    plan: TrainingPlan


def fit(
    base: LoadedModel,
    data: object,
    spec: FitSpec,
    output: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> FitResult:
    """Fit `base` to `data` and release the result into `output`.

    Order matters: whatever can be refused is refused before anything is trained.

    Raises:
        SpecError, DataError, ModelError: bad input; nothing was trained or written.
        OutputError: the disk is full; the last checkpoint stays, nothing is half-written.
        KeyboardInterrupt: stopped by the user; a resumable checkpoint is left.
    """
    observer = observer or Observer()
    configure_cpu(spec.threads)
    private = _open_output(output, resume)
    try:
        model, loss = _trainable(base, spec)
        dataset = _dataset(base, data, spec, private, resume)
        plan = make_plan(spec, public_facts(base, dataset.n_units))
    except BaseException:
        if not resume:
            _discard(output)
        raise
    observer.on_plan(plan)
    run = Run(
        loss=loss,
        dataset=dataset,
        plan=plan,
        private_folder=private,
        microbatch_tokens=spec.microbatch_tokens,
        checkpoint_every=spec.checkpoint_every,
        on_progress=observer.on_progress,
        on_private_metrics=_metrics_writer(private / "metrics.jsonl", observer),
    )
    train(run, resume=resume)
    model.eval()
    report = privacy_report(base, spec, plan, loss)
    lora.settle(model)
    release(model, base, report, output)
    return FitResult(model, report, plan)


def estimate(base: LoadedModel, spec: FitSpec, plan: TrainingPlan, tokens_per_unit: float) -> float:
    """Seconds that the steps of `plan` would take here. Attaches adapters to `base`."""
    configure_cpu(spec.threads)
    _, loss = _trainable(base, spec)
    return estimate_seconds(
        loss,
        plan,
        vocabulary=base.vocabulary,
        tokens_per_unit=tokens_per_unit,
        microbatch_tokens=spec.microbatch_tokens,
        device=base.device,
    )


def public_facts(base: LoadedModel, n_units: int) -> PublicFacts:
    """What defaults may depend on."""
    return PublicFacts(n_units, base.name, base.n_parameters, base.context_length)


def privacy_report(
    base: LoadedModel, spec: FitSpec, plan: TrainingPlan, loss: torch.nn.Module
) -> PrivacyReport:
    """The public record of a finished run."""
    parameters = trainable_parameters(loss)
    trained = sum(value.numel() for value in parameters.values())
    unit = spec.privacy_unit or "one record"
    if plan.privacy is None:
        return PrivacyReport(
            guarantee="none",
            privacy_unit=unit,
            n_units=plan.n_units,
            mechanism="none (ordinary fine-tuning)",
            steps=plan.steps,
            expected_batch_size=plan.batch_size,
            base_model=base.name,
            trainable_parameters=trained,
            taciturn_version=__version__,
        )
    mechanism = plan.mechanism(tuple(parameters))
    return PrivacyReport(
        guarantee="differential privacy",
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        privacy_unit=unit,
        max_records_per_unit=plan.max_records_per_unit,
        n_units=plan.n_units,
        mechanism="DP-SGD: exact Poisson sampling of units, per-unit clipping, Gaussian noise",
        noise_multiplier=mechanism.noise_multiplier,
        sampling_probability=mechanism.sampling_probability,
        steps=mechanism.steps,
        l2_clip_norm=mechanism.l2_clip_norm,
        expected_batch_size=mechanism.expected_batch_size,
        dp_event=event_to_dict(mechanism.dp_event),
        accountant=ACCOUNTANT,
        base_model=base.name,
        trainable_parameters=trained,
        taciturn_version=__version__,
    )


def release(model: Any, base: LoadedModel, report: PrivacyReport, output: Path) -> None:
    """Write the shareable files: all of them or none."""
    partial = output / f".partial-{os.getpid()}"
    with full_disk_is_clear(output):
        try:
            partial.mkdir(parents=True)
            adapter.save(model, base.tokenizer, base.name, partial)
            (partial / REPORT).write_text(report.model_dump_json(indent=2) + "\n")
            (partial / "README.md").write_text(model_card(report))
            for path in sorted(partial.iterdir()):
                os.replace(path, output / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def configure_cpu(threads: int | None) -> None:
    """Set the thread count, if given, and keep freed memory for the next step."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def _trainable(base: LoadedModel, spec: FitSpec) -> tuple[Any, CausalLmLoss]:
    choice = adapter_plan(spec, public_facts(base, n_units=1))
    model = lora.attach(base.model, choice)
    if spec.gradient_checkpointing:
        enable_checkpointing(model)
    loss = CausalLmLoss(model)
    if spec.private:
        verify(loss, public_batch(base.vocabulary).to(base.device))
    return model, loss


def _dataset(
    base: LoadedModel, data: object, spec: FitSpec, private: Path, resume: bool
) -> TokenizedDataset:
    folder = private / "data"
    if resume and folder.is_dir():
        return TokenizedDataset.open(folder)
    limit = max_tokens(spec, base.context_length)
    return prepare(data, spec, base.tokenizer, limit, folder, spec.seed)


def _open_output(output: Path, resume: bool) -> Path:
    private = output / PRIVATE
    if (output / REPORT).exists():
        raise OutputError(f"{output} already holds a fitted model; choose another output folder")
    if resume and not private.is_dir():
        raise CheckpointError(f"{output} holds no interrupted run; run without --resume")
    if not resume and output.exists() and any(output.iterdir()):
        hint = "; add --resume to go on with the run in it" if private.is_dir() else ""
        raise OutputError(f"{output} is not empty; choose another output folder{hint}")
    with full_disk_is_clear(output):
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
        (private / "README.txt").write_text(_PRIVATE_NOTICE)
    return private


def _discard(output: Path) -> None:
    shutil.rmtree(output / PRIVATE, ignore_errors=True)
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()


def _metrics_writer(path: Path, observer: Observer) -> Callable[[PrivateMetrics], None]:
    def write(metrics: PrivateMetrics) -> None:
        line = {
            "step": metrics.step,
            "mean_loss": metrics.mean_loss,
            "mean_norm": metrics.mean_norm,
            "clipped_share": metrics.clipped_share,
        }
        with full_disk_is_clear(path.parent), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        observer.on_private_metrics(metrics)

    return write
