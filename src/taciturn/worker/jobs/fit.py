"""A fit: the gateway's plan, run in blocks that are charged before they run.

A checkpoint is written before each charge. A worker that takes over goes on from the last one and
has the block charged that comes next, also if the one before it had: what that one may have run is
lost and was never released, so the model's epsilon is that of the plan, and the ledger, which keeps
what is unknown as spent, has charged more.

With a vault, each checkpoint is there, sealed, before the block that follows it is charged; a
worker on an empty disk begins with the newest one.

A worker of several processes fits with all of them: rank 0 does all that is said here, the others
take part (`take_part`), and what fails in one ends all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from taciturn.certificate.signers import Signer, find_signer
from taciturn.data.tokens.planted import CANARIES, Planted
from taciturn.engine.model.load import LoadedModel, choose_device, load_base
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.training.loop import Blocks, EpsilonCurve, Interrupted, Progress
from taciturn.engine.training.processes import all_processes, tell, together
from taciturn.errors import OutputError, SpecError
from taciturn.local.fit import Arranged, Observer, fit
from taciturn.local.release import DATA, PRIVATE
from taciturn.planning.plan import TrainingPlan
from taciturn.spec import FitSpec
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.worker import Assignment, BaseModelFacts
from taciturn.worker import base_files
from taciturn.worker.context import Task
from taciturn.worker.rows import declared, with_owners_terms
from taciturn.worker.workspace import newest_step, released

BLOCK_STEPS = 10
"""Steps that are charged at once; public, and the most that a crash costs twice."""


def run(task: Task, request: RemoteFit) -> None:
    """Fit, unless an earlier worker has, and release the result."""
    if not task.workspace.complete:
        task.peers.call(task.assignment)
        _train(task, request)
        task.workspace.set_complete()
    _keep_canaries(task)
    task.stage(Stage.RELEASING)
    for path in released(task.workspace.output):
        task.pulse.check()
        base_files.check(path, _of_base(task))
        task.door.file(path)


def _of_base(task: Task) -> Path:
    return task.workspace.made("base")


def take_part(assignment: Assignment, output: Path) -> None:
    """The same fit, in the other processes of a worker: without a word, and without a charge.

    Args:
        output: where rank 0's is used instead, once all have met.
    """
    if not isinstance(assignment.request, RemoteFit):
        raise SpecError("only a fit is done by several processes")
    _fit(assignment, assignment.request, output, _Part())


def _nothing_to_read() -> object:
    raise SpecError("rows are read by the first process of a worker")


@dataclass(frozen=True, slots=True)
class _Part:
    """What a process does besides the fit itself: rank 0 all of it, the others none.

    Attributes:
        begin: makes the workspace ready, before a row is read; whether there is a run in it to go
            on with.
        allow: has a block charged.
        opened: gives the rows, to be read.
    """

    stage: Callable[[Stage], None] = lambda stage: None
    begin: Callable[[LoadedModel], bool] = lambda base: False
    allow: Callable[[int, int], None] = lambda first_step, steps: None
    observer: Observer = field(default_factory=Observer)
    signer: Signer | None = None
    opened: Callable[[], object] = _nothing_to_read


def _train(task: Task, request: RemoteFit) -> None:
    def begin(base: LoadedModel) -> bool:
        base_files.keep(base, _of_base(task))
        _restore(task)
        task.pace.begin()
        return task.workspace.resumable()

    plan = task.assignment.plan
    curve = EpsilonCurve((), ()) if plan is None else EpsilonCurve.of(plan)
    charged = 0

    def on_plan(made: TrainingPlan) -> None:
        task.rows_are_read()
        task.door.plan(made)
        task.stage(Stage.TRAINING)

    def on_progress(progress: Progress) -> None:
        task.pulse.check()
        task.door.progress(progress.step, progress.steps, curve.at(charged))

    def allow(first_step: int, steps: int) -> None:
        nonlocal charged
        _keep(task)
        task.charge(first_step, steps)
        charged = first_step + steps
        if plan is not None:
            task.door.progress(first_step, plan.steps, curve.at(charged))

    observer = Observer(on_plan=on_plan, on_progress=on_progress)
    part = _Part(task.stage, begin, allow, observer, find_signer(None), task.opened)
    try:
        _fit(task.assignment, request, task.workspace.output, part)
    except Interrupted:
        _keep(task)  # the machine is taken away, and its disk with it
        raise
    _keep(task)


def _fit(assignment: Assignment, request: RemoteFit, output: Path, part: _Part) -> None:
    """What all processes of a worker do, in step."""
    plan = assignment.plan
    if plan is None:
        raise SpecError("the job is a fit, and its assignment has no plan")
    spec = fit_spec(assignment, request, plan)
    with all_processes(choose_device(spec)) as ranks:
        spec = _spread(spec, ranks)
        with together(ranks):
            part.stage(Stage.LOADING)
            base = load_base(request.model, spec)
            check_facts(base, assignment.base_model)
            begun = part.begin(base)
            part.stage(Stage.RESUMED if begun else Stage.READING)
        fit(
            base,
            declared(
                assignment.source,
                request.data,
                plan.n_units,
                part.opened,
                assignment.preparation_s,
            ),
            spec,
            output,
            resume=tell(ranks, str(begun))[0] == str(True),
            observer=part.observer,
            signer=part.signer,
            arranged=Arranged(plan, Blocks(BLOCK_STEPS, part.allow)),
        )


def _spread(spec: FitSpec, ranks: Ranks) -> FitSpec:
    """Weights are spread over the processes that there are: of one, it has them all."""
    return spec if ranks.size > 1 else spec.model_copy(update={"sharding": "none"})


def _restore(task: Task) -> None:
    """Begin with the vault's newest checkpoint, unless there is one here that is as new."""
    if task.vault is not None:
        output = task.workspace.output
        task.vault.restore(output, newest_step(output / PRIVATE))


def _keep(task: Task) -> None:
    if task.vault is not None:
        task.vault.keep(task.workspace.output / PRIVATE)


def _keep_canaries(task: Task) -> None:
    """For audits on other machines. A model that was paid for is released without that, too."""
    path = task.workspace.output / PRIVATE / DATA / CANARIES
    if task.vault is not None and path.is_file():
        try:
            task.vault.vault.keep_canaries(path, Planted.read(path.parent).commitment)
        except OutputError as error:
            print(f"canaries are in the workspace only: {error}", file=sys.stderr)


def fit_spec(assignment: Assignment, request: RemoteFit, plan: TrainingPlan) -> FitSpec:
    """What the engine is asked for: the request, the owner's unit, the plan's delta."""
    spec = with_owners_terms(request.fit_spec(), assignment.source, request.data)
    if spec.delta is None and plan.privacy is not None:
        return spec.model_copy(update={"delta": plan.privacy.delta})
    return spec


def check_facts(base: LoadedModel, facts: BaseModelFacts | None) -> None:
    """Raise SpecError unless the model is the one that the plan was made for."""
    found = (base.n_parameters, base.context_length, base.vocabulary)
    if facts is None or found != (facts.parameters, facts.context_length, facts.vocabulary):
        raise SpecError(
            f"{base.name} has (parameters, context, vocabulary) = {found}, which is not what the "
            "gateway knows of it; correct its entry there"
        )
