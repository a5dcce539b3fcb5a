"""A fit: the gateway's plan, run in blocks that are charged before they run.

A checkpoint is written before each charge. A worker that takes over goes on from the last one and
has the block charged that comes next, also if the one before it had: what that one may have run is
lost and was never released, so the model's epsilon is that of the plan, and the ledger, which keeps
what is unknown as spent, has charged more.

With a checkpoint store, each checkpoint is there, sealed, before the block that follows it is
charged; a worker on an empty disk begins with the newest one.

A worker of several processes fits with all of them: rank 0 does all that is said here, the others
take duties (`take_part`), and what fails in one ends all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.certificate.signers import Signer, find_signer
from taciturn.data.declared import DeclaredText
from taciturn.data.tokens.planted import CANARIES, Planted
from taciturn.engine.model.load import LoadedModel, choose_device, load_base
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.training.loop import Blocks, EpsilonCurve, Interrupted, TrainingProgress
from taciturn.engine.training.processes import all_processes, tell, together
from taciturn.errors import OutputError, SpecError
from taciturn.local.fit import Arranged, Observer, fit
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.privacy import DATA, PRIVATE
from taciturn.spec import FitSpec
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.worker import Assignment, BaseModelFacts
from taciturn.worker import base_files
from taciturn.worker.context import JobContext
from taciturn.worker.rows import declared, with_owners_terms
from taciturn.worker.workspace import newest_step, released

BLOCK_STEPS = 10
"""Steps that are charged at once; public, and the most that a crash costs twice."""


def run(context: JobContext, request: RemoteFit) -> None:
    """Fit, unless an earlier worker has, and release the result."""
    if not context.workspace.complete:
        context.processes.call(context.assignment)
        _train(context, request)
        context.workspace.set_complete()
    _keep_canaries(context)
    context.stage(Stage.RELEASING)
    for path in released(context.workspace.output):
        context.heartbeat.check()
        base_files.check(path, _of_base(context))
        context.egress.file(path)


def _of_base(context: JobContext) -> Path:
    return context.workspace.make_folder("base")


def take_part(assignment: Assignment, output: Path) -> None:
    """The same fit, in the other processes of a worker: without a word, and without a charge.

    Args:
        output: where rank 0's is used instead, once all have met.
    """
    if not isinstance(assignment.request, RemoteFit):
        raise SpecError("only a fit is done by several processes")
    _fit(assignment, assignment.request, output, _Duties())


def _nothing_to_read() -> object:
    raise SpecError("rows are read by the first process of a worker")


@dataclass(frozen=True, slots=True)
class _Duties:
    """Duties of a process besides the fit itself: rank 0 has all of them, the others none.

    Attributes:
        begin: makes the workspace ready, before a row is read; True if it has a run to go on with.
        allow: has a block charged.
        open_rows: gives the rows, to be read.
        open_public_text: gives the text that is learned from as public.
    """

    stage: Callable[[Stage], None] = lambda stage: None
    begin: Callable[[LoadedModel], bool] = lambda base: False
    allow: Callable[[int, int], None] = lambda first_step, steps: None
    observer: Observer = field(default_factory=Observer)
    signer: Signer | None = None
    open_rows: Callable[[], object] = _nothing_to_read
    open_public_text: Callable[[], object] = _nothing_to_read


def _train(context: JobContext, request: RemoteFit) -> None:
    def begin(base: LoadedModel) -> bool:
        base_files.keep(base, _of_base(context))
        _restore(context)
        context.padding.begin()
        return context.workspace.resumable()

    plan = context.assignment.plan
    curve = EpsilonCurve((), ()) if plan is None else EpsilonCurve.of(plan)
    charged = 0

    def on_plan(training_plan: TrainingPlan) -> None:
        context.rows_are_read()
        context.egress.plan(training_plan)
        context.stage(Stage.TRAINING)

    def on_progress(progress: TrainingProgress) -> None:
        context.heartbeat.check()
        context.egress.progress(progress.step, progress.steps, curve.at(charged))

    def allow(first_step: int, steps: int) -> None:
        nonlocal charged
        _keep(context)
        context.charge(first_step, steps)
        charged = first_step + steps
        if plan is not None:
            context.egress.progress(first_step, plan.steps, curve.at(charged))

    observer = Observer(on_plan=on_plan, on_progress=on_progress)
    places = (context.open_rows, context.open_public_text)
    duties = _Duties(context.stage, begin, allow, observer, find_signer(None), *places)
    try:
        _fit(context.assignment, request, context.workspace.output, duties)
    except Interrupted:
        _keep(context)  # the machine is taken away, and its disk with it
        raise
    _keep(context)


def _fit(assignment: Assignment, request: RemoteFit, output: Path, duties: _Duties) -> None:
    """Fit, in step with the other processes of the worker."""
    plan = assignment.plan
    if plan is None:
        raise SpecError("the job is a fit, and its assignment has no plan")
    spec = fit_spec(assignment, request, plan, duties.open_public_text)
    with all_processes(choose_device(spec)) as ranks:
        spec = _spread(spec, ranks)
        with together(ranks):
            duties.stage(Stage.LOADING)
            base = load_base(request.model, spec)
            check_facts(base, assignment.base_model)
            has_run = duties.begin(base)
            duties.stage(Stage.RESUMED if has_run else Stage.READING)
        fit(
            base,
            declared(
                assignment.source,
                request.data,
                plan.n_units,
                duties.open_rows,
                assignment.preparation_s,
            ),
            spec,
            output,
            resume=tell(ranks, str(has_run))[0] == str(True),
            observer=duties.observer,
            signer=duties.signer,
            arranged=Arranged(plan, Blocks(BLOCK_STEPS, duties.allow)),
        )


def _spread(spec: FitSpec, ranks: Ranks) -> FitSpec:
    """Weights are spread over the processes that there are: of one, it has them all."""
    return spec if ranks.size > 1 else spec.model_copy(update={"sharding": "none"})


def _restore(context: JobContext) -> None:
    """Begin with the store's newest checkpoint, unless there is one here that is as new."""
    if context.checkpoints is not None:
        output = context.workspace.output
        context.checkpoints.restore(output, newest_step(output / PRIVATE))


def _keep(context: JobContext) -> None:
    if context.checkpoints is not None:
        context.checkpoints.keep(context.workspace.output / PRIVATE)


def _keep_canaries(context: JobContext) -> None:
    """Keep the canaries for audits on other machines. A model that was paid for is released even
    if that fails."""
    path = context.workspace.output / PRIVATE / DATA / CANARIES
    if context.checkpoints is not None and path.is_file():
        try:
            context.checkpoints.store.keep_canaries(path, Planted.read(path.parent).commitment)
        except OutputError as error:
            print(f"canaries are in the workspace only: {error}", file=sys.stderr)


def fit_spec(
    assignment: Assignment,
    request: RemoteFit,
    plan: TrainingPlan,
    open_public_text: Callable[[], object] = _nothing_to_read,
) -> FitSpec:
    """Build the engine's spec from the request, the owner's unit, the plan's delta and the public
    text that is registered."""
    spec = with_owners_terms(request.fit_spec(), assignment.source, request.data)
    if request.public_data is not None:
        text = assignment.public_source
        if text is None:
            raise SpecError("the job has public data, and its assignment does not say where")
        declared_text = DeclaredText(text.name, text.declaration, open_public_text)
        column = spec.public_text_field or text.text_field
        update = {"public_data": declared_text, "public_text_field": column}
        spec = spec.model_copy(update=update)
    if spec.delta is None and plan.privacy is not None:
        return spec.model_copy(update={"delta": plan.privacy.delta})
    return spec


def check_facts(base: LoadedModel, facts: BaseModelFacts | None) -> None:
    """Raise SpecError unless the model is the one that the plan was made for."""
    properties = (base.n_parameters, base.context_length, base.vocabulary)
    if facts is None or properties != (facts.parameters, facts.context_length, facts.vocabulary):
        raise SpecError(
            f"{base.name} has (parameters, context, vocabulary) = {properties}, which is not what "
            "the gateway knows of it; correct its entry there"
        )
