"""One fit job, from spec to released folder: the same code for the SDK, the CLI and a cluster.

The output folder holds what may be shared; everything that depends on rows without the budget
having paid for it is in its subfolder `private/`.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taciturn.certificate.commitment import committed
from taciturn.certificate.signers import Signer
from taciturn.data.filesystem import check_output_folder
from taciturn.data.tokens.origin import Origin, canonical_source
from taciturn.data.tokens.planted import CANARIES, Planted
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import check_prepared, prepare
from taciturn.data.unit import unit_name
from taciturn.engine.auditing.canaries import check_number, draw_canaries
from taciturn.engine.model import lora
from taciturn.engine.model.compiled import restore_parts
from taciturn.engine.model.files import base_digests
from taciturn.engine.model.load import LoadedModel, choose_device
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.sharding import check_can_shard
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.training.checkpoint import full_disk_is_clear
from taciturn.engine.training.graphs import records_of, wants_graphs
from taciturn.engine.training.loop import (
    Blocks,
    Interrupted,
    PrivateMetrics,
    Run,
    TrainingProgress,
    train,
)
from taciturn.engine.training.microbatch import microbatch_tokens
from taciturn.engine.training.processes import agree, all_processes, tell, together
from taciturn.engine.training.public import PublicStage, PublicText
from taciturn.engine.training.run_record import RunRecord, digest_of
from taciturn.engine.training.trainable import trainable
from taciturn.errors import CallbackError, CheckpointError, OutputError, SpecError
from taciturn.local.estimate import (
    configure_cpu,
    exact_kernels,
    measured_speed,
    public_facts,
)
from taciturn.local.release import TRACKING, private_folder, release
from taciturn.local.report import privacy_report, with_costs
from taciturn.planning.optimizer import OptimizerChoice
from taciturn.planning.plan import (
    EXPLANATIONS,
    PrivacyPlan,
    Speed,
    TrainingPlan,
    adapter_plan,
    make_plan,
    max_tokens,
    public_plan,
    record_tokens,
    with_rate,
)
from taciturn.reports.privacy import (
    DATA,
    PRIVATE,
    REPORT,
    SCOPE,
    CanaryReport,
    LedgerTotal,
    PrivacyReport,
    PrivateStep,
    PublicData,
)
from taciturn.reports.spending import check_units
from taciturn.spec import FitSpec

_PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class Observer:
    """Callbacks while a job runs, for its owner; each does nothing by default.

    Attributes:
        on_checkpoint: gets the number of steps of a checkpoint that was written.
        failed: returns an error that the run has to end with as soon as it is in a whole state.
    """

    on_plan: Callable[[TrainingPlan], None] = lambda plan: None
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None
    on_private_metrics: Callable[[PrivateMetrics], None] = lambda metrics: None
    on_checkpoint: Callable[[int], None] = lambda step: None
    failed: Callable[[], CallbackError | None] = lambda: None


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
    """Result of a fit job; without the model if it was sharded, which is in the released folder."""

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
    optimizer: OptimizerChoice | None = None,
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
        optimizer: settings of the optimiser in place of the plan's; without a part in the promise.

    Raises:
        SpecError, DataError, ModelError: bad input; nothing was trained or written.
        OutputError: the disk is full; the last checkpoint stays, nothing is half-written.
        KeyboardInterrupt: stopped by the user; a resumable checkpoint is left.
        ProcessError: with several processes, another one failed.
    """
    configure_cpu(spec.threads)
    device = choose_device(spec)
    with all_processes(device) as ranks, exact_kernels(base, spec, device):
        agree(ranks, "settings", _digest(base, spec, resume))
        agree(ranks, "models and costs before this fit", _history(spent, earlier))
        # Rank 0's: each process may have made a temporary folder of its own.
        output = Path(tell(ranks, str(output.absolute()))[0])
        observer = observer or Observer()
        before = (tuple(spent), earlier, arranged)
        job = _Job(base, spec, output, ranks, observer, signer, *before, pay, optimizer)
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
    optimizer: OptimizerChoice | None

    @property
    def private(self) -> Path:
        return self.output / PRIVATE

    @property
    def data(self) -> Path:
        """Folder of the prepared rows, and of canaries."""
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
            record = _run_record(job, origin, public, resume)
        choice = adapter_plan(spec, public_facts(base, n_units=1))
        fitted = None if earlier is None else earlier.model
        text = None if public is None else public.rows()
        model, loss = trainable(base, spec, choice, job.ranks, fitted, text)
        # Before a row is read, from public shapes.
        longest = record_tokens(spec, base.context_length)
        tokens = microbatch_tokens(loss, spec, base.vocabulary, longest, job.ranks)
        stage = None if public is None else _public_stage(job, loss, public, tokens)
        # Before a row is read: how long it takes must not depend on any.
        speed = _speed(job, record, loss, resume)
        if speed is not None:
            record = _recorded(job, record, seconds_per_unit=speed.seconds_per_unit)
        dataset = _dataset(job, data, resume)
        _canaries(job)
        if job.arranged is None:
            plan = make_plan(spec, public_facts(base, dataset.n_units), speed)
            plan = _tuned(job, record, plan, stage)
            if job.optimizer is not None:
                plan = plan.model_copy(update=job.optimizer.settings(plan.steps))
        else:
            plan = job.arranged.plan
    with _all_or_nothing(job, resume), together(job.ranks):
        if job.ranks.first:
            job.observer.on_plan(plan)
            _end_if_failed(job, "nothing was spent, and nothing is left of the run")
    # A resumed run goes on with the weights of its checkpoint.
    if stage is not None and not resume:
        with _all_or_nothing(job, resume):
            records = stage.text.fitted.n_units
            stage.fit(public_plan(spec, choice, public_facts(base, records)))
    paid: list[LedgerTotal | None] = []
    run = _run(job, loss, dataset, plan, tokens, lambda: paid.append(_pay(job, record.run, plan)))
    try:
        train(run, resume=resume)
    except Interrupted as stop:
        with together(job.ranks):
            _end_if_failed(
                job,
                f"stopped after step {stop.step} of {plan.steps}; all of the run stays paid for, "
                "and its checkpoint is there: run again with --resume to go on",
            )
        raise
    restore_parts(model)
    model.eval()
    origin["canaries"] = _canaries(job)
    origin["public_data"] = _all_public(earlier, public)
    made_of = Origin.read(job.data)
    report = privacy_report(base, made_of, plan, loss).model_copy(update=origin)
    before = None if earlier is None else earlier.report
    report = with_costs(report, record.spent, before, _commitment(job, dataset))
    if job.arranged is None:
        scope = SCOPE if spec.private else None
        report = report.model_copy(update={"scope": scope, "ledger": paid[0]})
    lora.settle(model)
    _release_once(job, model, report)
    return FitResult(None if job.sharded else model, report, plan)


def _end_if_failed(job: _Job, state: str) -> None:
    """Raise what a callback has failed with, if one has, and what is there now."""
    failure = job.observer.failed()
    if failure is not None:
        raise CallbackError(f"{failure}. The run: {state}") from failure.__cause__


def _speed(job: _Job, record: RunRecord, loss: CausalLmLoss, resume: bool) -> Speed | None:
    """Return the speed for max_minutes: measured here, and kept for whoever resumes the run."""
    if job.spec.max_minutes is None or job.arranged is not None:
        return None
    if resume:
        if record.seconds_per_unit is None:
            raise CheckpointError(
                f"the run in {job.output} was begun without max_minutes; leave it out to resume it"
            )
        return Speed(record.seconds_per_unit, "as measured when the run was begun")
    with together(job.ranks):
        pass  # all measure at once, as all will run at once
    return measured_speed(job.base, job.spec, loss, job.ranks)


def _recorded(job: _Job, record: RunRecord, **measured: float) -> RunRecord:
    """Write down what was measured before the first step, for whoever resumes the run."""
    record = record.model_copy(update=measured)
    with together(job.ranks):
        if job.ranks.first:
            record.write(job.private)
    return record


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
        return PublicText.open(folder, spec.seed, spec.public_data)


def _check_other_data(data: object, public: object) -> None:
    """Raise SpecError where private data are named as public, too; no row is looked at."""
    source = canonical_source(public)
    if public is data or (source is not None and source == canonical_source(data)):
        raise SpecError(
            "public_data is the private data: what is learned from it would be learned without "
            "any privacy. Give text that anybody may read, or leave it out"
        )


def _public_stage(job: _Job, loss: CausalLmLoss, public: PublicText, tokens: int) -> PublicStage:
    form = Form(job.spec.per_unit_gradients)
    return PublicStage(loss, public, tokens, form, job.ranks)


def _tuned(
    job: _Job, record: RunRecord, plan: TrainingPlan, stage: PublicStage | None
) -> TrainingPlan:
    """Return the plan with a learning rate from public text, unless the spec has one."""
    if stage is None or plan.privacy is None or job.spec.learning_rate is not None:
        return plan
    factor = record.rate_factor
    if factor is None:
        factor = stage.rate_factor(plan)
        _recorded(job, record, rate_factor=factor)
    return with_rate(plan, factor)


def _all_public(earlier: Earlier | None, public: PublicText | None) -> tuple[PublicData, ...]:
    """Return what all fits of a model have learned from without a guarantee."""
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
    tokens: int,
    before_steps: Callable[[], None],
) -> Run:
    return Run(
        loss=loss,
        dataset=dataset,
        plan=plan,
        vocabulary=job.base.vocabulary,
        private_folder=job.private,
        microbatch_tokens=tokens,
        form=Form(job.spec.per_unit_gradients),
        checkpoint_every=job.spec.checkpoint_every,
        graphs=wants_graphs(job.spec, plan, loss),
        records=records_of(job.spec),
        on_progress=job.observer.on_progress,
        on_private_metrics=_metrics_writer(job.private / "metrics.jsonl", job.observer),
        ranks=job.ranks,
        blocks=None if job.arranged is None else job.arranged.blocks,
        before_steps=before_steps,
        on_checkpoint=job.observer.on_checkpoint,
        stop=lambda: job.observer.failed() is not None,
    )


def _commitment(job: _Job, dataset: TokenizedDataset) -> str:
    """Return rank 0's commitment: its salt is secret, and one salt opens one commitment."""
    own = ""
    with together(job.ranks):
        if job.ranks.first:
            own = committed(job.private, dataset.fingerprint)
    return tell(job.ranks, own)[0]


def _digest(base: LoadedModel, spec: FitSpec, resume: bool) -> str:
    """Return a name of what all processes must have been given; their devices may differ."""
    # The first process alone reads public data, whatever the others were given.
    plain = spec.model_dump_json(exclude={"device", "public_data"})
    return _digest_of([base.name, resume, spec.public_data is None, plain])


def _history(spent: Sequence[PrivateStep], earlier: Earlier | None) -> str:
    """Return a name of what was fitted and spent before, which all processes report alike."""
    report = None if earlier is None else earlier.report.model_dump_json()
    return _digest_of([report, *(step.model_dump_json() for step in spent)])


def _digest_of(values: Sequence[str | bool | None]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


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
    """Compare, up to what a mathematical library of another machine may round differently."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, PrivacyPlan) and isinstance(other, PrivacyPlan):
        pairs = zip(one.model_dump().values(), other.model_dump().values(), strict=True)
        return all(_alike(*pair) for pair in pairs)
    return one == other


def _origin(base: LoadedModel, earlier: Earlier | None) -> dict[str, Any]:
    """Return the public model it all began with: a further fit begins where the first one did."""
    if earlier is None:
        return {"base_model": base.name, "base_model_sha256": base_digests(base.name)}
    return earlier.report.model_dump(include={"base_model", "base_model_sha256"})


def _run_record(
    job: _Job, origin: Mapping[str, Any], public: PublicText | None, resume: bool
) -> RunRecord:
    """Return the record of this run, or of the one it resumes; raises CheckpointError otherwise."""
    earlier = None if job.earlier is None else digest_of(job.earlier.report)
    run = secrets.token_hex(16)
    text = None if public is None else public.about
    record = RunRecord(run=run, earlier=earlier, spent=job.spent, public_data=text, **origin)
    if resume:
        return RunRecord.read(job.private).resumed_as(record)
    if job.ranks.first:
        record.write(job.private)
    return record


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
                planted = draw_canaries(
                    spec.canary_kind, spec.canaries, tokenizer, pairs=spec.pairs
                )
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
    """Return what may be said of the canaries in the prepared data; raises CheckpointError.

    A resumed run has the canaries that it began with, so it must have been asked for the same.
    """
    report = None
    if (job.data / CANARIES).is_file():
        planted = Planted.read(job.data)
        units = planted.units
        report = CanaryReport(number=len(units), kind=units.kind, commitment=planted.commitment)
    first = (0, None) if report is None else (report.number, report.kind)
    current = (job.spec.canaries, job.spec.canary_kind if job.spec.canaries else None)
    if first != current:
        raise CheckpointError(
            f"the run in {job.output} was begun with canaries={first[0]} ({first[1]}), not "
            f"canaries={current[0]} ({current[1]}); give the same to resume it"
        )
    return report


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
    for folder in (PRIVATE, TRACKING):
        shutil.rmtree(output / folder, ignore_errors=True)
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
