"""Screen of a fit while it runs: a bar, the time left, and epsilon so far."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from taciturn.engine.training import loop
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan


class FitScreen:
    """Draws one fit on a console; use it as a context manager."""

    def __init__(self, console: Console, label: str, *, show_private: bool = False) -> None:
        self._console = console
        self._show_private = show_private
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[spent]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(label, total=None, spent="reading")

    def __enter__(self) -> FitScreen:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def observer(self) -> Observer:
        """The callbacks that move this screen."""
        return Observer(self._plan, self._progress, self._metrics)

    def _plan(self, plan: TrainingPlan) -> None:
        for reason in plan.reasons:
            self._console.print(f"  {reason}", style="dim", markup=False)
        if plan.worth is not None:
            self._console.print(f"  worth: {plan.worth.text}", markup=False)
        self._bar.update(self._task, total=plan.steps, spent=_spent(0.0 if plan.privacy else None))

    def _progress(self, progress: loop.TrainingProgress) -> None:
        self._bar.update(
            self._task, completed=progress.step, spent=_spent(progress.epsilon), refresh=True
        )

    def _metrics(self, metrics: loop.PrivateMetrics) -> None:
        if self._show_private:
            self._console.print(
                f"  private: step {metrics.step}, loss {metrics.mean_loss:.4f}, "
                f"clipped {metrics.clipped_share:.0%}",
                style="dim",
            )


def _spent(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"epsilon {epsilon:.2f}"
