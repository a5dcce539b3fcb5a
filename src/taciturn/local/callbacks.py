"""Callbacks of a run: they get public events, and one that raises ends the run cleanly.

A failure is kept until the run is in a whole state: before the first step nothing was spent, and
nothing is left; after it a checkpoint is written first; after the last one the model is released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taciturn.engine.training.loop import PrivateMetrics, TrainingProgress
from taciturn.engine.training.torchrun import is_first_process
from taciturn.errors import CallbackError, SpecError, TaciturnError
from taciturn.local.events import (
    Callback,
    CheckpointEvent,
    EndEvent,
    EpsilonEvent,
    EvaluationEvent,
    FitEvent,
    PlanEvent,
    StepEvent,
)
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.figures import Figure, ReleasedDownstream, ReleasedEvaluation
from taciturn.reports.privacy import PrivacyReport


@dataclass(slots=True)
class Callbacks:
    """Callbacks of one run, called in the first process.

    Attributes:
        failure: what one of them raised first; none is called after that.
        private: functions of the owner's private metrics; trackers on this machine alone.
    """

    functions: tuple[Callback, ...] = ()
    private: tuple[Callable[[PrivateMetrics], object], ...] = ()
    failure: BaseException | None = None
    _name: str = ""
    _step: int | None = None
    _delta: float | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        functions: object,
        trackers: Sequence[Callback] = (),
        private: Sequence[Callable[[PrivateMetrics], object]] = (),
    ) -> Callbacks:
        """Return them, checked, with trackers; raises SpecError for what cannot be called."""
        if functions is None:
            functions = ()
        if isinstance(functions, str) or not isinstance(functions, Iterable):
            raise SpecError(
                f"callbacks is {type(functions).__name__}; give a list of functions of one event"
            )
        callbacks = tuple(functions)
        for function in callbacks:
            if not callable(function) or isinstance(function, type):
                raise SpecError(
                    f"callbacks has {type(function).__name__} in it; each must be a function of "
                    "one event"
                )
        if not is_first_process():
            return cls()
        return cls((*callbacks, *trackers), tuple(private))

    def emit(self, event: FitEvent) -> None:
        """Tell every callback, unless one has failed."""
        for function in self.functions:
            self._call(function, event)

    def _call(self, function: Callable[[Any], object], argument: object) -> None:
        if self.failure is not None:
            return
        try:
            function(argument)
        # SystemExit and Ctrl-C, too: whatever a callback raises waits for a whole state.
        except BaseException as error:
            self.failure = error
            self._name = getattr(function, "__name__", type(function).__name__)

    def observer(self, observer: Observer, base_model: str, privacy_unit: str) -> Observer:
        """Return an observer that does what `observer` does, and tells the callbacks."""

        def on_plan(plan: TrainingPlan) -> None:
            observer.on_plan(plan)
            self._delta = None if plan.privacy is None else plan.privacy.delta
            self.emit(plan_event(plan, base_model, privacy_unit))

        def on_progress(progress: TrainingProgress) -> None:
            observer.on_progress(progress)
            self._step = progress.step
            self.emit(StepEvent(progress.step, progress.steps))
            if progress.epsilon is not None and self._delta is not None:
                self.emit(EpsilonEvent(progress.step, progress.epsilon, self._delta))

        def on_checkpoint(step: int) -> None:
            observer.on_checkpoint(step)
            self._step = step
            self.emit(CheckpointEvent(step))

        def on_private_metrics(metrics: PrivateMetrics) -> None:
            observer.on_private_metrics(metrics)
            for function in self.private:
                self._call(function, metrics)

        return Observer(
            on_plan=on_plan,
            on_progress=on_progress,
            on_private_metrics=on_private_metrics,
            on_checkpoint=on_checkpoint,
            failed=lambda: self.failed() or observer.failed(),
        )

    def failed(self) -> CallbackError | None:
        """Return what stops the run, if anything does."""
        if self.failure is None:
            return None
        # Our own words quote no row; others' stay in the cause.
        words = f" ({self.failure})" if isinstance(self.failure, TaciturnError) else ""
        error = CallbackError(
            f"callback {self._name} raised {type(self.failure).__name__}{words}; mend or remove it"
        )
        error.__cause__ = self.failure
        return error

    def complete(self, report: PrivacyReport, folder: Path | None) -> None:
        """Tell that the model is there; with its released files, if it has a folder of its own."""
        files = () if folder is None else tuple(map(str, released_files(folder)))
        self.emit(EndEvent("complete", report.steps, report.policy, files))

    def end(self, error: BaseException) -> None:
        """Tell that the run ended without a model."""
        stopped = self.failure is not None or isinstance(error, KeyboardInterrupt)
        event = EndEvent("stopped" if stopped else "failed", self._step)
        # All are told, whoever has failed: a tracker closes its run.
        for function in self.functions:
            Callbacks((function,)).emit(event)

    @contextmanager
    def evaluating(self, policy: str) -> Iterator[None]:
        """Tell of the end of an evaluation, whether or not it comes to one."""
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise
        self.emit(EndEvent("complete", None, policy))

    def raise_failure(self, state: str, result: object = None) -> None:
        """Raise what a callback has raised, if one has; `state` says what is there now."""
        if self.failure is not None:
            raise CallbackError(f"{self.failed()}. {state}", result=result) from self.failure


def plan_event(plan: TrainingPlan, base_model: str, privacy_unit: str) -> PlanEvent:
    """Return what callbacks are told of a plan."""
    privacy = plan.privacy
    return PlanEvent(
        base_model=base_model,
        privacy_unit=privacy_unit,
        max_records_per_unit=plan.max_records_per_unit,
        n_units=plan.n_units,
        epsilon=None if privacy is None else privacy.epsilon,
        delta=None if privacy is None else privacy.delta,
        noise_multiplier=None if privacy is None else privacy.noise_multiplier,
        l2_clip_norm=None if privacy is None else privacy.l2_clip_norm,
        sampling_probability=plan.sampling_probability,
        batch_size=plan.batch_size,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        max_tokens=plan.max_tokens,
        method=plan.adapter.method,
        rank=plan.adapter.r,
        reasons=plan.reasons,
        worth=None if plan.worth is None else plan.worth.text,
    )


def evaluation_event(figures: ReleasedEvaluation | ReleasedDownstream) -> EvaluationEvent:
    """Return what callbacks are told of released figures."""
    about = figures.model_dump(include={"basis", "n_units", "epsilon", "delta"})
    evaluation = isinstance(figures, ReleasedEvaluation)
    values = tuple(_values(figures, ""))
    return EvaluationEvent("evaluate" if evaluation else "downstream", figures=values, **about)


def _values(model: object, prefix: str) -> Iterable[tuple[str, float]]:
    for name in getattr(type(model), "model_fields", ()):
        value = getattr(model, name)
        if isinstance(value, Figure):
            yield f"{prefix}{name}", value.value
            if value.std:
                yield f"{prefix}{name}_std", value.std
        elif name in ("base", "fitted", "gain") and value is not None:
            yield from _values(value, f"{prefix}{name}/")
        elif (name in ("mauve", "preferred") and value is not None) or (
            name == "preferred_std" and value
        ):
            yield f"{prefix}{name}", value


def released_files(folder: Path) -> Sequence[Path]:
    """Return the files of a fitted model's folder, sorted; what is private lies in a folder."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )
