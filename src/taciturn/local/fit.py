"""One fit job, from spec to released folder: the same code for the SDK, the CLI and a cluster.

The output folder holds what may be shared; everything that depends on rows without the budget
having paid for it is in its subfolder `private/`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from taciturn._version import __version__
from taciturn.accounting.compose import ACCOUNTANT
from taciturn.accounting.events import event_to_dict
from taciturn.certificate.commitment import commit, committed
from taciturn.certificate.sign import issue, library_versions, released_audit
from taciturn.certificate.signers import Signer
from taciturn.data.filesystem import check_output_folder
from taciturn.data.tokens.origin import Origin, canonical_source
from taciturn.data.tokens.planted import CANARIES, Planted
from taciturn.data.tokens.tokenize import TokenizedDataset, check_prepared, prepare
from taciturn.data.unit import unit_name
from taciturn.engine.auditing.canaries import check_number, draw_canaries
from taciturn.engine.model import adapter, lora
from taciturn.engine.model.compiled import restore_parts
from taciturn.engine.model.files import base_digests
from taciturn.engine.model.load import LoadedModel, choose_device
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.sharding import check_can_shard
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.training.checkpoint import full_disk_is_clear
from taciturn.engine.training.estimate import (
    FormChoice,
    Workload,
    estimate_memory,
    estimate_seconds,
    form_choices,
    measured_seconds_per_unit,
)
from taciturn.engine.training.loop import Blocks, PrivateMetrics, Progress, Run, train
from taciturn.engine.training.mechanism import planned_mechanism
from taciturn.engine.training.memory import MemoryEstimate, available_bytes
from taciturn.engine.training.processes import agree, all_processes, tell, together
from taciturn.engine.training.public import PublicStage, PublicText
from taciturn.engine.training.run_record import Begun, digest_of
from taciturn.engine.training.trainable import trainable
from taciturn.errors import CheckpointError, GuaranteeError, ModelError, OutputError, SpecError
from taciturn.malloc import keep_freed_memory
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import (
    EXPLANATIONS,
    TOKENS_PER_UNIT,
    PrivacyPlan,
    Speed,
    TrainingPlan,
    adapter_plan,
    make_plan,
    max_tokens,
    public_plan,
    with_rate,
)
from taciturn.reports.card import model_card
from taciturn.reports.figures import ReleasedFigures
from taciturn.reports.html.report import report_page
from taciturn.reports.privacy import (
    AUDIT,
    REPORT,
    SCOPE,
    Audit,
    CanaryReport,
    LedgerTotal,
    PrivacyReport,
    PrivateStep,
    PublicData,
    read_report,
)
from taciturn.reports.spending import check_units, with_steps
from taciturn.spec import FitSpec

PRIVATE = "private"
DATA = "data"
_PUBLIC = "public"
FIGURES = "evaluations.json"
"""What evaluations released of the model; there is no such file before the first."""
PAGE = "report.html"
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
class Cost:
    """What a job would take on this machine.

    Attributes:
        seconds: of its steps.
        memory: of its largest microbatch, weights and optimiser.
        available_bytes: what is free on the device, None where nobody says.
        forms: how per-unit gradients would be kept.
    """

    seconds: float
    memory: MemoryEstimate
    available_bytes: int | None
    forms: tuple[FormChoice, ...]


@dataclass(frozen=True, slots=True)
class Earlier:
    """A fitted model that is fitted further, and what it promises so far."""

    model: Any
    report: PrivacyReport


@dataclass(frozen=True, slots=True)
class Arranged:
    """A fit that a gateway has arranged: the very plan that was paid for, run in paid blocks.

    Its number of units is the declared one. How many there are is private, and may be none.
    """

    plan: TrainingPlan
    blocks: Blocks


Payment = Callable[[str, TrainingPlan], LedgerTotal]
"""Charges a run, by its name, with all of its plan; what all runs on its data then cost."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit job gives back; no model if it was sharded, but the released folder."""

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
    signer: Signer | None = None,
    spent: Sequence[PrivateStep] = (),
    earlier: Earlier | None = None,
    arranged: Arranged | None = None,
    pay: Payment | None = None,
) -> FitResult:
    """Fit `base` to `data` and release the result into `output`.

    Order matters: whatever can be refused is refused before anything is trained.

    Args:
        signer: signs the certificate; without one, none is written. Rank 0's is used.
        spent: private steps before this one, which the report composes with it.
        earlier: the fitted model to go on with, instead of a new adapter on `base`.
        arranged: runs its plan, instead of one for the number of units that are found. A plan that
            is not what this process would make of `spec` and its own `base` is a SpecError.
        pay: called in one process before a step runs, once nothing can be refused any more; for a
            resumed run again, with the same name.

    Raises:
        SpecError, DataError, ModelError: bad input; nothing was trained or written.
        OutputError: the disk is full; the last checkpoint stays, nothing is half-written.
        KeyboardInterrupt: stopped by the user; a resumable checkpoint is left.
        ProcessError: with several processes, another one failed.
    """
    configure_cpu(spec.threads)
    with all_processes(choose_device(spec)) as ranks:
        agree(ranks, "settings", _digest(base, spec, resume))
        agree(ranks, "models and costs before this fit", _history(spent, earlier))
        # Rank 0's: each process may have made a temporary folder of its own.
        output = Path(tell(ranks, str(output.absolute()))[0])
        observer = observer or Observer()
        before = (tuple(spent), earlier, arranged)
        job = _Job(base, spec, output, ranks, observer, signer, *before, pay)
        return _fit(job, data, resume)


@dataclass(frozen=True, slots=True)
class _Job:
    base: LoadedModel
    spec: FitSpec
    output: Path
    ranks: Ranks
    observer: Observer
    signer: Signer | None
    spent: tuple[PrivateStep, ...]
    earlier: Earlier | None
    arranged: Arranged | None
    pay: Payment | None

    @property
    def private(self) -> Path:
        return self.output / PRIVATE

    @property
    def data(self) -> Path:
        """Where the prepared rows are, and canaries."""
        return self.private / DATA

    @property
    def sharded(self) -> bool:
        return self.spec.sharding == "full"


def _fit(job: _Job, data: object, resume: bool) -> FitResult:
    base, spec, earlier = job.base, job.spec, job.earlier
    if job.sharded:
        check_can_shard(base.model, job.ranks.size)
    with together(job.ranks):
        if job.ranks.first:
            _open_output(job.output, resume)
    with _all_or_nothing(job, resume):
        with together(job.ranks):
            check_number(spec.canaries)
            check_units([*(step.privacy_unit for step in job.spent), unit_name(spec)])
            _check_earlier(earlier, spec)
            _check_arranged(job)
            origin = _origin(base, earlier)
        public = _public_text(job, data)
        with together(job.ranks):
            begun = _begun(job, origin, public, resume)
        choice = adapter_plan(spec, public_facts(base, n_units=1))
        fitted = None if earlier is None else earlier.model
        text = None if public is None else public.rows()
        model, loss = trainable(base, spec, choice, job.ranks, fitted, text)
        stage = None if public is None else _public_stage(job, loss, public)
        # Before a row is read: how long it takes must not depend on any.
        speed = _speed(job, begun, loss, resume)
        if speed is not None:
            begun = _kept(job, begun, seconds_per_unit=speed.seconds_per_unit)
        dataset = _dataset(job, data, resume)
        _canaries(job)
        if job.arranged is None:
            plan = make_plan(spec, public_facts(base, dataset.n_units), speed)
            plan = _tuned(job, begun, plan, stage)
        else:
            plan = job.arranged.plan
    if job.ranks.first:
        job.observer.on_plan(plan)
    # A resumed run goes on with the weights of its checkpoint.
    if stage is not None and not resume:
        with _all_or_nothing(job, resume):
            records = stage.text.fitted.n_units
            stage.fit(public_plan(spec, choice, public_facts(base, records)))
    paid: list[LedgerTotal | None] = []
    run = _run(job, loss, dataset, plan, lambda: paid.append(_pay(job, begun.run, plan)))
    train(run, resume=resume)
    restore_parts(model)
    model.eval()
    origin["canaries"] = _canaries(job)
    origin["public_data"] = _all_public(earlier, public)
    made_of = Origin.read(job.data)
    report = privacy_report(base, made_of, plan, loss).model_copy(update=origin)
    report = _all_costs(job, begun, report, _commitment(job, dataset))
    if job.arranged is None:
        scope = SCOPE if spec.private else None
        report = report.model_copy(update={"scope": scope, "ledger": paid[0]})
    lora.settle(model)
    _release_once(job, model, report)
    return FitResult(None if job.sharded else model, report, plan)


def _speed(job: _Job, begun: Begun, loss: CausalLmLoss, resume: bool) -> Speed | None:
    """What max_minutes is reckoned with: measured here, and kept for whoever resumes the run."""
    if job.spec.max_minutes is None or job.arranged is not None:
        return None
    if resume:
        if begun.seconds_per_unit is None:
            raise CheckpointError(
                f"the run in {job.output} was begun without max_minutes; leave it out to resume it"
            )
        return Speed(begun.seconds_per_unit, "as measured when the run was begun")
    with together(job.ranks):
        pass  # all measure at once, as all will run at once
    return _measured_speed(job.base, job.spec, loss, job.ranks)


def _kept(job: _Job, begun: Begun, **measured: float) -> Begun:
    """What was measured before the first step, written down for whoever resumes the run."""
    begun = begun.model_copy(update=measured)
    with together(job.ranks):
        if job.ranks.first:
            begun.write(job.private)
    return begun


def _measured_speed(
    base: LoadedModel, spec: FitSpec, loss: CausalLmLoss, ranks: Ranks = ALONE
) -> Speed:
    """Of this device, by public random tokens; of all processes together, by the slowest."""
    limit = max_tokens(spec, base.context_length)
    form = Form(spec.per_unit_gradients)
    work = Workload(min(TOKENS_PER_UNIT, limit), spec.microbatch_tokens, base.vocabulary, form)
    own = measured_seconds_per_unit(loss, limit, work, base.device)
    slowest = max(row[0] for row in ranks.numbers([own]))
    # Two digits: no more is reproducible, and the reason shows all of it.
    rounded = float(f"{slowest / ranks.size:.2g}")
    basis = f"measured here on public random tokens, {work.tokens_per_unit:g} of them a unit"
    return Speed(rounded, basis)


@contextmanager
def _all_or_nothing(job: _Job, resume: bool) -> Iterator[None]:
    """Remove what a new run has written, if it fails before a step."""
    try:
        yield
    except BaseException:
        if not resume and job.ranks.first:
            _discard(job.output)
        raise


def _public_text(job: _Job, data: object) -> PublicText | None:
    """Rank 0 reads what was declared public; the others map what it has written."""
    spec, base, folder = job.spec, job.base, job.private / _PUBLIC
    if spec.public_data is None:
        return None
    with together(job.ranks):
        if job.ranks.first:
            _check_other_data(data, spec.public_data)
            shutil.rmtree(folder, ignore_errors=True)  # of the run that is resumed
            limit = max_tokens(spec, base.context_length)
            PublicText.prepare(spec, base.tokenizer, limit, folder, base.vocabulary)
    with together(job.ranks):
        return PublicText.open(folder, spec.seed)


def _check_other_data(data: object, public: object) -> None:
    """Raise SpecError where private data are named as public, too; no row is looked at."""
    source = canonical_source(public)
    if public is data or (source is not None and source == canonical_source(data)):
        raise SpecError(
            "public_data is the private data: what is learned from it would be learned without "
            "any privacy. Give text that anybody may read, or leave it out"
        )


def _public_stage(job: _Job, loss: CausalLmLoss, public: PublicText) -> PublicStage:
    form = Form(job.spec.per_unit_gradients)
    return PublicStage(loss, public, job.spec.microbatch_tokens, form, job.ranks)


def _tuned(job: _Job, begun: Begun, plan: TrainingPlan, stage: PublicStage | None) -> TrainingPlan:
    """The plan with a learning rate from public text, unless one was given; once for a run."""
    if stage is None or plan.privacy is None or job.spec.learning_rate is not None:
        return plan
    factor = begun.rate_factor
    if factor is None:
        factor = stage.rate_factor(plan)
        _kept(job, begun, rate_factor=factor)
    return with_rate(plan, factor)


def _all_public(earlier: Earlier | None, public: PublicText | None) -> tuple[PublicData, ...]:
    """What all fits of a model have learned from without a guarantee."""
    before = () if earlier is None else earlier.report.public_data
    return before if public is None else (*before, public.about)


def _pay(job: _Job, run: str, plan: TrainingPlan) -> LedgerTotal | None:
    """Charge the whole run in its ledger, if it has one; only then may it begin."""
    paid = None
    with together(job.ranks):
        if job.ranks.first and job.pay is not None:
            paid = job.pay(run, plan)
    return paid


def _run(
    job: _Job,
    loss: CausalLmLoss,
    dataset: TokenizedDataset,
    plan: TrainingPlan,
    before_steps: Callable[[], None],
) -> Run:
    return Run(
        loss=loss,
        dataset=dataset,
        plan=plan,
        vocabulary=job.base.vocabulary,
        private_folder=job.private,
        microbatch_tokens=job.spec.microbatch_tokens,
        form=Form(job.spec.per_unit_gradients),
        checkpoint_every=job.spec.checkpoint_every,
        on_progress=job.observer.on_progress,
        on_private_metrics=_metrics_writer(job.private / "metrics.jsonl", job.observer),
        ranks=job.ranks,
        blocks=None if job.arranged is None else job.arranged.blocks,
        before_steps=before_steps,
    )


def _all_costs(job: _Job, begun: Begun, report: PrivacyReport, commitment: str) -> PrivacyReport:
    """The report of this fit with what was spent before it."""
    report = report.model_copy(update={"libraries": library_versions()})
    before = None if job.earlier is None else job.earlier.report.delta
    if report.delta is not None and before is not None:
        report = report.model_copy(update={"delta": min(report.delta, before)})
    return with_steps(report, [*begun.spent, *_fit_step(report, commitment)])


def _commitment(job: _Job, dataset: TokenizedDataset) -> str:
    """Rank 0's: its salt is secret, and one salt opens one commitment."""
    own = ""
    with together(job.ranks):
        if job.ranks.first:
            own = committed(job.private, dataset.fingerprint)
    return tell(job.ranks, own)[0]


def _digest(base: LoadedModel, spec: FitSpec, resume: bool) -> str:
    """Names what all processes must have been given; their devices may differ."""
    # The first process alone reads public data, whatever the others were given.
    plain = spec.model_dump_json(exclude={"device", "public_data"})
    return _named([base.name, resume, spec.public_data is None, plain])


def _history(spent: Sequence[PrivateStep], earlier: Earlier | None) -> str:
    """Names what was fitted and spent before, of which all processes make one report."""
    report = None if earlier is None else earlier.report.model_dump_json()
    return _named([report, *(step.model_dump_json() for step in spent)])


def _named(values: Sequence[str | bool | None]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def estimate(
    base: LoadedModel, spec: FitSpec, n_units: int, tokens_per_unit: float
) -> tuple[TrainingPlan, Cost]:
    """The plan, and what its steps would take here. Attaches adapters to `base`."""
    loss = _attached(base, spec)
    speed = None if spec.max_minutes is None else _measured_speed(base, spec, loss)
    plan = make_plan(spec, public_facts(base, n_units), speed)
    form = Form(spec.per_unit_gradients)
    work = Workload(tokens_per_unit, spec.microbatch_tokens, base.vocabulary, form)
    return plan, Cost(
        seconds=estimate_seconds(loss, plan, work, base.device),
        memory=estimate_memory(loss, plan, work, base.device),
        available_bytes=available_bytes(base.device),
        forms=tuple(form_choices(loss, plan, work)),
    )


def measured_speed(base: LoadedModel, spec: FitSpec) -> Speed:
    """What max_minutes is reckoned with. Attaches adapters to `base`."""
    return _measured_speed(base, spec, _attached(base, spec))


def _attached(base: LoadedModel, spec: FitSpec) -> CausalLmLoss:
    configure_cpu(spec.threads)
    choice = adapter_plan(spec, public_facts(base, n_units=1))
    return trainable(base, spec, choice, ALONE)[1]


def public_facts(base: LoadedModel, n_units: int) -> PublicFacts:
    """What defaults may depend on."""
    return PublicFacts(n_units, base.name, base.n_parameters, base.context_length)


def privacy_report(
    base: LoadedModel, data: Origin, plan: TrainingPlan, loss: torch.nn.Module
) -> PrivacyReport:
    """The public record of a finished run: of the data that were prepared, and of what ran."""
    parameters = trainable_parameters(loss)
    trained = sum(value.numel() for value in parameters.values())
    unit = data.privacy_unit
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
    mechanism = planned_mechanism(plan, tuple(parameters))
    return PrivacyReport(
        guarantee="differential privacy",
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        privacy_unit=unit,
        max_records_per_unit=data.spec.max_records_per_unit,
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


def release(
    model: Any,
    base: LoadedModel,
    report: PrivacyReport,
    output: Path,
    signer: Signer | None = None,
    *,
    audit: Audit | None = None,
    sharded: bool = False,
    first: bool = True,
    figures: ReleasedFigures | None = None,
) -> None:
    """Write the shareable files: all of them or none; with a signer, the certificate too.

    Args:
        figures: what evaluations of the model have released.
        audit: what an audit of the model has found.
        sharded: the model is spread over processes, all of which call this.
        first: this is the process that writes a sharded model's weights.
    """
    partial = output / f".partial-{os.getpid()}"
    with full_disk_is_clear(output):
        try:
            partial.mkdir(parents=True)
            if sharded and not hasattr(model, "peft_config"):
                adapter.save_sharded(model, base.tokenizer, partial, first=first)
            else:
                adapter.save(model, base.tokenizer, base.name, partial)
            _write_words(partial, report, figures or ReleasedFigures(), audit)
            if signer is not None and report.guarantee != "none":
                issue(partial, signer)
            for path in sorted(partial.iterdir()):
                os.replace(path, output / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def update_report(
    folder: Path, before: PrivacyReport, after: PrivacyReport, signer: Signer | None
) -> None:
    """Replace report, card and page in a released folder, and sign its certificate anew.

    Raises:
        GuaranteeError: the folder's report is not `before`: another process has spent meanwhile.
    """
    _replace_words(folder, before, after, released_audit(folder))
    if signer is not None and after.guarantee != "none":
        issue(folder, signer)


def add_audit(folder: Path, report: PrivacyReport, audit: Audit, signer: Signer | None) -> None:
    """Put an audit's result into a released folder, its card and, with a signer, its certificate.

    A refuted guarantee gets no certificate: one that was there does not cover the result and is
    refused from now on.

    Raises:
        GuaranteeError: the folder's report is not `report`: another process has spent meanwhile.
    """
    _replace_words(folder, report, report, audit)
    if signer is not None and report.guarantee != "none" and not audit.refuted:
        issue(folder, signer)


def _replace_words(
    folder: Path, before: PrivacyReport, after: PrivacyReport, audit: Audit | None
) -> None:
    if read_report(folder / REPORT) != before:
        raise GuaranteeError(
            f"{folder / REPORT} was changed meanwhile; load the model again and repeat"
        )
    partial = folder / f".partial-{os.getpid()}"
    with full_disk_is_clear(folder):
        try:
            partial.mkdir()
            _write_words(partial, after, released_figures(folder), audit)
            # Backwards: the page is ahead of the report, so that it never says less was spent.
            for path in sorted(partial.iterdir(), reverse=True):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def add_figures(folder: Path, figures: ReleasedFigures) -> None:
    """Replace what evaluations have released of the model in `folder`, and its page."""
    report = read_report(folder / REPORT)
    partial = folder / f".partial-{os.getpid()}"
    with full_disk_is_clear(folder):
        try:
            partial.mkdir()
            _write_figures(partial, report, figures, released_audit(folder))
            for path in sorted(partial.iterdir()):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def released_figures(folder: Path) -> ReleasedFigures:
    """What evaluations have released of the model in `folder`; raises ModelError if damaged."""
    path = folder / FIGURES
    if not path.is_file():
        return ReleasedFigures()
    try:
        return ReleasedFigures.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ModelError(
            f"{path} is damaged or truncated; remove it, the model itself does not need it"
        ) from None


def _write_words(
    folder: Path, report: PrivacyReport, figures: ReleasedFigures, audit: Audit | None
) -> None:
    """What is said about a model: report and audit, and card and page of them."""
    (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(report, audit), encoding="utf-8")
    if audit is not None:
        (folder / AUDIT).write_text(audit.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _write_figures(folder, report, figures, audit)


def _write_figures(
    folder: Path, report: PrivacyReport, figures: ReleasedFigures, audit: Audit | None
) -> None:
    (folder / PAGE).write_text(report_page(report, figures, audit), encoding="utf-8")
    if figures != ReleasedFigures():
        content = figures.model_dump_json(indent=2) + "\n"
        (folder / FIGURES).write_text(content, encoding="utf-8")


def commit_evaluation(private_folders: Sequence[Path], fingerprint: str) -> str:
    """Commit to held-out data; the opening goes to the first private folder that is there."""
    home = next((folder for folder in private_folders if folder.is_dir()), None)
    if home is None:
        return commit(fingerprint, os.urandom(32))
    opening = Path(tempfile.mkdtemp(prefix="evaluation-", dir=home))
    return committed(opening, fingerprint)


def private_folder(folder: Path) -> None:
    """Make a folder for what must not be shared, and say so in it."""
    with full_disk_is_clear(folder.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "README.txt").write_text(_PRIVATE_NOTICE, encoding="utf-8")


def configure_cpu(threads: int | None) -> None:
    """Set the thread count, if given, and keep freed memory for the next step."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def _check_earlier(earlier: Earlier | None, spec: FitSpec) -> None:
    if earlier is None:
        return
    if spec.private and earlier.report.guarantee == "none":
        raise SpecError(
            f"{earlier.report.base_model} was fitted without a guarantee, which no later fit can "
            "give back; start from the base model"
        )
    if spec.r is not None or spec.alpha is not None:
        raise SpecError("r and alpha belong to a new adapter; leave them out to train this one")


def _check_arranged(job: _Job) -> None:
    """Raise SpecError unless the arranged plan is what follows from spec and model, here too."""
    if job.arranged is None:
        return
    plan = job.arranged.plan
    if plan.n_units <= job.spec.canaries:
        raise SpecError(
            f"the plan is for n_units={plan.n_units} with canaries={job.spec.canaries} among them; "
            "at least one other unit must have been declared"
        )
    speed = None
    if plan.seconds_per_unit is not None:
        speed = Speed(plan.seconds_per_unit, "as the gateway knew it")
    own = make_plan(job.spec, public_facts(job.base, plan.n_units), speed)
    for name in type(plan).model_fields.keys() - EXPLANATIONS:
        if not _alike(getattr(plan, name), getattr(own, name)):
            raise SpecError(
                f"the plan has {name}={getattr(plan, name)!r}, this model and version give "
                f"{getattr(own, name)!r}; make the plan anew"
            )


def _alike(one: object, other: object) -> bool:
    """Equal, up to what a mathematical library of another machine may round differently."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, PrivacyPlan) and isinstance(other, PrivacyPlan):
        pairs = zip(one.model_dump().values(), other.model_dump().values(), strict=True)
        return all(_alike(*pair) for pair in pairs)
    return one == other


def _origin(base: LoadedModel, earlier: Earlier | None) -> dict[str, Any]:
    """Which public model it all began with: a further fit begins where the first one did."""
    if earlier is None:
        return {"base_model": base.name, "base_model_sha256": base_digests(base.name)}
    return earlier.report.model_dump(include={"base_model", "base_model_sha256"})


def _begun(job: _Job, origin: Mapping[str, Any], public: PublicText | None, resume: bool) -> Begun:
    """What this run is, or the one that it resumes; raises CheckpointError if that is another."""
    earlier = None if job.earlier is None else digest_of(job.earlier.report)
    run = secrets.token_hex(16)
    text = None if public is None else public.about
    asked = Begun(run=run, earlier=earlier, spent=job.spent, public_data=text, **origin)
    if resume:
        return Begun.read(job.private).resumed_as(asked)
    if job.ranks.first:
        asked.write(job.private)
    return asked


def _dataset(job: _Job, data: object, resume: bool) -> TokenizedDataset:
    """Rank 0 reads the rows; the others map what it has written.

    A resumed run goes on with the rows that it was begun with, if the call is about the same.
    """
    folder, spec, tokenizer = job.data, job.spec, job.base.tokenizer
    with together(job.ranks):
        limit = max_tokens(spec, job.base.context_length)
        if job.ranks.first and resume and folder.is_dir():
            check_prepared(data, spec, tokenizer, limit, folder, spec.seed)
        elif job.ranks.first:
            planted = None
            if spec.canaries:
                planted = draw_canaries(spec.canary_kind, spec.canaries, tokenizer)
            vocabulary = job.base.vocabulary
            prepare(data, spec, tokenizer, limit, folder, spec.seed, planted, vocabulary)
    with together(job.ranks):
        if not folder.is_dir():
            raise OutputError(
                f"process {job.ranks.rank} cannot see {folder}; choose an output folder that all "
                "machines of this job share"
            )
        return TokenizedDataset.open(folder)


def _canaries(job: _Job) -> CanaryReport | None:
    """What may be said about the canaries in the prepared data; raises CheckpointError.

    A resumed run has the canaries that it began with, so it must have been asked for the same.
    """
    found = None
    if (job.data / CANARIES).is_file():
        planted = Planted.read(job.data)
        units = planted.units
        found = CanaryReport(number=len(units), kind=units.kind, commitment=planted.commitment)
    begun = (0, None) if found is None else (found.number, found.kind)
    asked = (job.spec.canaries, job.spec.canary_kind if job.spec.canaries else None)
    if begun != asked:
        raise CheckpointError(
            f"the run in {job.output} was begun with canaries={begun[0]} ({begun[1]}), not "
            f"canaries={asked[0]} ({asked[1]}); give the same to resume it"
        )
    return found


def _release_once(job: _Job, model: Any, report: PrivacyReport) -> None:
    """One process writes and signs; a sharded model is saved by all, each in its own folder."""
    if not job.sharded:
        with together(job.ranks):
            if job.ranks.first:
                release(model, job.base, report, job.output, job.signer)
    elif job.ranks.first:
        release(model, job.base, report, job.output, job.signer, sharded=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            release(model, job.base, report, Path(folder), sharded=True, first=False)
    with together(job.ranks):
        pass  # nobody goes on before the files are there


def _fit_step(report: PrivacyReport, commitment: str) -> list[PrivateStep]:
    if report.dp_event is None:
        return []
    step = PrivateStep(
        purpose="fit",
        dp_event=report.dp_event,
        privacy_unit=report.privacy_unit,
        max_records_per_unit=report.max_records_per_unit or 1,
        n_units=report.n_units,
        dataset_commitment=commitment,
    )
    return [step]


def _open_output(output: Path, resume: bool) -> Path:
    private = output / PRIVATE
    check_output_folder(output)
    if (output / REPORT).exists():
        raise OutputError(f"{output} already holds a fitted model; choose another output folder")
    if resume and not private.is_dir():
        raise CheckpointError(f"{output} holds no interrupted run; run without --resume")
    if not resume and output.exists() and any(output.iterdir()):
        hint = "; add --resume to go on with the run in it" if private.is_dir() else ""
        raise OutputError(f"{output} is not empty; choose another output folder{hint}")
    private_folder(private)
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
