"""A fit: the gateway's plan, run in blocks that are charged before they run.

A checkpoint is written before each charge. A worker that takes over goes on from the last one and
has the block charged that comes next, also if the one before it had: what that one may have run is
lost and was never released, so the model's epsilon is that of the plan, and the ledger, which keeps
what is unknown as spent, has charged more.
"""

from __future__ import annotations

from taciturn.certificate.signers import find_signer
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.engine.training.loop import Blocks, Progress
from taciturn.errors import SpecError
from taciturn.planning.plan import TrainingPlan
from taciturn.runner.data import declared, with_owners_terms
from taciturn.runner.task import Task
from taciturn.runner.workspace import released
from taciturn.spec import FitSpec
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.worker import BaseModelFacts
from taciturn.worker import Arranged, Observer, fit

BLOCK_STEPS = 10
"""Steps that are charged at once; public, and the most that a crash costs twice."""


def run(task: Task, request: RemoteFit) -> None:
    """Fit, unless an earlier worker has, and release the result."""
    if not task.workspace.complete:
        _train(task, request)
        task.workspace.set_complete()
    task.stage(Stage.RELEASING)
    for path in released(task.workspace.output):
        task.pulse.check()
        task.door.file(path)


def _train(task: Task, request: RemoteFit) -> None:
    plan = task.assignment.plan
    if plan is None:
        raise SpecError("the job is a fit, and its assignment has no plan")
    spec = fit_spec(task, request, plan)
    task.stage(Stage.LOADING)
    base = load_base(request.model, spec)
    check_facts(base, task.assignment.base_model)
    resume = task.workspace.resumable()
    task.stage(Stage.RESUMED if resume else Stage.READING)

    def on_plan(made: TrainingPlan) -> None:
        task.door.plan(made)
        task.stage(Stage.TRAINING)

    def on_progress(progress: Progress) -> None:
        task.pulse.check()
        if progress.step % BLOCK_STEPS == 0 or progress.step == progress.steps:
            task.door.progress(progress.step, progress.steps, progress.epsilon)

    fit(
        base,
        declared(task.assignment.source, request.data, plan.n_units),
        spec,
        task.workspace.output,
        resume=resume,
        observer=Observer(on_plan=on_plan, on_progress=on_progress),
        signer=find_signer(None),
        arranged=Arranged(plan, Blocks(BLOCK_STEPS, task.charge)),
    )


def fit_spec(task: Task, request: RemoteFit, plan: TrainingPlan) -> FitSpec:
    """What the engine is asked for: the request, the owner's unit, the plan's delta."""
    spec = with_owners_terms(request.fit_spec(), task.assignment.source, request.data)
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
