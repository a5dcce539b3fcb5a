"""Log of a DPTrainer: public events as TrainerState and TrainerCallbacks know them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from taciturn.errors import SpecError
from taciturn.hf.settings import Settings
from taciturn.local.events import (
    Callback,
    CheckpointEvent,
    EndEvent,
    EpsilonEvent,
    FitEvent,
    PlanEvent,
    StepEvent,
)
from taciturn.planning.plan import TrainingPlan


def split_callbacks(callbacks: Iterable[Any]) -> tuple[list[TrainerCallback], list[Callback]]:
    """Return TrainerCallbacks, and functions of events; raises SpecError for those that can't be.

    TrainerCallbacks get arguments, state and control, and neither model nor optimiser.
    """
    trainer_callbacks: list[TrainerCallback] = []
    functions: list[Callback] = []
    for callback in callbacks:
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, TrainerCallback):
            functions.append(callback)
            continue
        if issubclass(kind, EarlyStoppingCallback):
            raise SpecError(
                "callbacks has EarlyStoppingCallback: to stop by a loss on private rows would tell "
                "of them, and the whole plan is paid for; leave it out"
            )
        if kind.__module__.startswith("transformers.integrations"):
            raise SpecError(
                f"callbacks has {kind.__name__}, which reads model and arguments by itself; name "
                "the tracker in report_to: tensorboard, mlflow, wandb or csv"
            )
        trainer_callbacks.append(callback() if isinstance(callback, type) else callback)
    return trainer_callbacks, functions


@dataclass(slots=True)
class TrainerLog:
    """Callback that keeps `state.log_history`, and tells TrainerCallbacks.

    Attributes:
        judge: figures of public data with the model as it is; None where none are judged.
    """

    args: TrainingArguments
    settings: Settings
    callbacks: list[TrainerCallback]
    judge: Callable[[], dict[str, float]] | None = None
    state: TrainerState = field(default_factory=TrainerState)
    control: TrainerControl = field(default_factory=TrainerControl)
    plan: TrainingPlan | None = None

    def take_plan(self, plan: TrainingPlan) -> None:
        """Keep the plan, which the learning rate of a step follows from."""
        self.plan = plan
        self.state.max_steps = plan.steps
        self.state.num_train_epochs = max(1, round(plan.epochs))

    def __call__(self, event: FitEvent) -> None:
        """Log an event, and tell it."""
        match event:
            case PlanEvent():
                self._tell("on_train_begin")
                if self.judge is not None and self.args.eval_on_start:
                    self._judge()
            case StepEvent():
                self.state.global_step = event.step
                if self.plan is not None:
                    self.state.epoch = event.step * self.plan.sampling_probability
                self._tell("on_step_end")
                if self.plan is not None and self.plan.privacy is None:
                    self._after(event.step, {})
            case EpsilonEvent():
                self._after(event.step, {"epsilon": event.epsilon, "delta": event.delta})
            case CheckpointEvent():
                self._tell("on_save")
            case EndEvent():
                self._tell("on_train_end")
        if self.control.should_training_stop and not isinstance(event, EndEvent):
            raise SpecError(
                "a callback has set should_training_stop: the run stops, and the whole of its plan "
                "stays paid for"
            )

    def log(self, values: dict[str, Any]) -> None:
        """Add an entry to the history."""
        epoch = round(float(self.state.epoch or 0), 4)
        entry = {**values, "epoch": epoch, "step": self.state.global_step}
        self.state.log_history.append(entry)
        self._tell("on_log", logs=dict(entry))

    def _after(self, step: int, values: dict[str, float]) -> None:
        assert self.plan is not None
        steps, per_epoch = self.plan.steps, self._per_epoch()
        first = step == 1 and self.settings.first_step
        if first or step == steps or self.settings.logging.is_due(step, steps, per_epoch):
            rate = self.plan.optimizer().rate(step - 1)
            self.log({"learning_rate": rate, **values})
        if self.judge is not None and self.settings.evaluating.is_due(step, steps, per_epoch):
            self._judge()

    def _judge(self) -> None:
        assert self.judge is not None
        figures = self.judge()
        self.log(figures)
        self._tell("on_evaluate", metrics=dict(figures))

    def _per_epoch(self) -> int:
        assert self.plan is not None
        return max(1, round(1 / self.plan.sampling_probability))

    def _tell(self, name: str, **values: Any) -> None:
        for callback in self.callbacks:
            answer = getattr(callback, name)(self.args, self.state, self.control, **values)
            self.control = self.control if answer is None else answer
