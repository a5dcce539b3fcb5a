"""Trackers: callbacks that write public events to TensorBoard, MLflow, Weights & Biases or CSV.

A package is imported when its tracker is named, and before anything is spent. Values bear the time
of the run's beginning and their step: how long a step takes depends on the units that it drew.
"""

from __future__ import annotations

import csv
import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from taciturn.engine.training.loop import PrivateMetrics
from taciturn.engine.training.torchrun import is_first_process
from taciturn.errors import MissingDependencyError, OutputError, SpecError
from taciturn.local.events import (
    CheckpointEvent,
    EndEvent,
    EpsilonEvent,
    EvaluationEvent,
    FitEvent,
    PlanEvent,
    StepEvent,
)
from taciturn.local.release import TRACKING
from taciturn.reports.privacy import PRIVATE

_PROJECT = "taciturn"
Facts = Mapping[str, str | int | float]


class Sink(Protocol):
    """One tracker's own way to keep facts, values and files."""

    def begin(self, name: str, facts: Facts) -> None:
        """Open a run of that name."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep values of a step."""

    def keep(self, paths: Sequence[str]) -> None:
        """Keep released files."""

    def close(self, status: str) -> None:
        """Close the run: complete, stopped or failed."""


@dataclass(slots=True)
class Tracker:
    """A callback that writes events to one sink."""

    name: str
    sink: Sink
    show_private: bool = False
    _open: bool = False
    _step: int = 0

    @property
    def __name__(self) -> str:
        """Name of the tracker, for the message of what it raises."""
        return f"report_to={self.name}"

    def begin(self, name: str, facts: Facts) -> None:
        """Open the run in the tracker."""
        self.sink.begin(name, facts)
        self._open = True

    def __call__(self, event: FitEvent) -> None:
        """Write an event down."""
        match event:
            case PlanEvent():
                facts = {key: _plain(value) for key, value in asdict(event).items()}
                self.begin("fit", {key: value for key, value in facts.items() if value != ""})
            case StepEvent():
                self._step = event.step
                self.sink.log(event.step, {"progress": event.step / event.steps})
            case EpsilonEvent():
                self.sink.log(event.step, {"epsilon": event.epsilon})
            case CheckpointEvent():
                self.sink.log(event.step, {"checkpoint": event.step})
            case EvaluationEvent():
                self.sink.log(self._step, _figures(event))
            case EndEvent() if self._open:
                self._open = False
                if event.files:
                    self.sink.keep(event.files)
                self.sink.close(event.status)

    def private(self, metrics: PrivateMetrics) -> None:
        """Write private metrics down, on this machine."""
        values = {
            "private/mean_loss": metrics.mean_loss,
            "private/mean_norm": metrics.mean_norm,
            "private/clipped_share": metrics.clipped_share,
        }
        self.sink.log(metrics.step, values)


def private_functions(trackers: Iterable[Tracker]) -> list[Callable[[PrivateMetrics], None]]:
    """Return the functions of trackers that may be given private metrics."""
    return [tracker.private for tracker in trackers if tracker.show_private]


def open_trackers(
    report_to: Sequence[str], output: Path | None, *, show_private: bool = False
) -> list[Tracker]:
    """Return the trackers of a run; nothing is written before its plan is known.

    Args:
        output: folder of the run; files of trackers go into its folder `tracking`.
        show_private: private curves, too; for trackers on a path of this machine.

    Raises:
        MissingDependencyError: a tracker's package is not installed.
        SpecError: private curves would leave this machine, or a place cannot be one.
    """
    if show_private and not report_to:
        raise SpecError("show_private shows private curves in trackers; name one with report_to")
    if not is_first_process():
        return []
    return [_tracker(entry, output, show_private) for entry in report_to]


def _tracker(entry: str, output: Path | None, show_private: bool) -> Tracker:
    kind, _, place = entry.partition(":")
    _check_secret(kind, place)
    if kind == "csv":
        path = _path(kind, place or str(_default(output, show_private) / "progress.csv"))
        _check_private_path(path, output, show_private)
        return Tracker(kind, CsvSink(path), show_private)
    if kind == "tensorboard":
        root = place or os.environ.get("TENSORBOARD_LOGGING_DIR", "")
        path = _path(kind, root or str(_default(output, show_private) / kind))
        _check_private_path(path, output, show_private)
        _imported(kind, "tensorboard.summary.writer.event_file_writer")
        return Tracker(kind, TensorBoardSink(path), show_private)
    if kind == "mlflow":
        uri = place or str(_imported(kind, "mlflow").get_tracking_uri())
        _check_private_uri(uri, output, show_private)
        return Tracker(kind, MlflowSink(_imported(kind, "mlflow"), uri), show_private)
    if show_private:
        raise SpecError(
            "show_private with report_to=wandb: its runs are meant for a server, also those kept "
            "offline; give csv or tensorboard for private curves"
        )
    return Tracker(kind, WandbSink(_imported(kind, "wandb"), place, _default(output, False)))


def _default(output: Path | None, show_private: bool) -> Path:
    if output is None:
        return Path("runs")
    return output / PRIVATE / TRACKING if show_private else output / TRACKING


def _path(kind: str, place: str) -> Path:
    if "://" in place:
        raise SpecError(
            f"report_to={kind}:{place}: {kind} writes files on this machine; give a path"
        )
    return Path(place).expanduser()


def _check_private_path(path: Path, output: Path | None, show_private: bool) -> None:
    """Raise SpecError if private curves would lie among what may be shared."""
    if not show_private or output is None:
        return
    shared, private = output.resolve(), (output / PRIVATE).resolve()
    own = path.resolve()
    if own.is_relative_to(shared) and not own.is_relative_to(private):
        raise SpecError(
            f"show_private: {path} is in the folder that may be shared; leave the place out, or "
            f"choose one in {output / PRIVATE}"
        )


def _check_private_uri(uri: str, output: Path | None, show_private: bool) -> None:
    """Raise SpecError if private curves would go to a URL, or among what may be shared."""
    parts = urlsplit(uri)
    if not show_private:
        return
    if parts.scheme == "sqlite":
        path = uri.removeprefix("sqlite:///")
    # A bare word, such as databricks, is the name of a service.
    elif parts.scheme in ("", "file") and not parts.netloc and "/" in parts.path:
        path = parts.path
    else:
        raise SpecError(
            f"show_private with report_to=mlflow:{uri}: private curves go to a path of this "
            "machine alone, never to a URL; give mlflow:sqlite:///FILE, csv or tensorboard, or "
            "leave show_private out"
        )
    _check_private_path(Path(path), output, show_private)


def _check_secret(kind: str, place: str) -> None:
    """Raise SpecError for a password in a place: it would stand in lists of processes and logs."""
    if "://" in place and urlsplit(place).password:
        raise SpecError(
            f"report_to={kind}: there is a password in the URL; leave it out, and give it in the "
            "tracker's own environment variables, such as MLFLOW_TRACKING_PASSWORD"
        )


def _imported(kind: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"report_to={kind} needs {error.name}, and it is not installed; run "
            f"`pip install 'taciturn[{kind}]'` or leave it out"
        ) from None


def _plain(value: object) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "; ".join(map(str, value))
    assert isinstance(value, str | int | float)
    return value


def _figures(event: EvaluationEvent) -> dict[str, float]:
    values = {f"{event.purpose}/{name}": value for name, value in event.figures}
    if event.epsilon is not None:
        values[f"{event.purpose}/epsilon"] = event.epsilon
    return values


@dataclass(slots=True)
class CsvSink:
    """Lines `name,step,value` in one file; a run that goes on is written after the earlier one."""

    path: Path

    def begin(self, name: str, facts: Facts) -> None:
        """Write the facts, whose step is empty."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        self._write([("name", "step", "value")] if new else [])
        self._write([("run", "", name), *((key, "", value) for key, value in facts.items())])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line for each value."""
        self._write([(name, step, value) for name, value in values.items()])

    def keep(self, paths: Sequence[str]) -> None:
        """Write where each file is."""
        self._write([("file", "", path) for path in paths])

    def close(self, status: str) -> None:
        """Write the status."""
        self._write([("status", "", status)])

    def _write(self, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror}; choose another place: "
                "report_to=csv:FILE"
            ) from error


@dataclass(slots=True)
class TensorBoardSink:
    """Event files, written by TensorBoard's own package, without TensorFlow or torch."""

    folder: Path
    _writer: Any = None
    _start: float = 0.0

    def begin(self, name: str, facts: Facts) -> None:
        """Open an event file; the facts are a table on the page of texts."""
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        from tensorboard.util.tensor_util import make_tensor_proto

        self._writer, self._start = EventFileWriter(str(self.folder)), time.time()
        rows = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in facts.items()]
        table = "\n".join([f"| {name} | |", "|---|---|", *rows])
        self._add(
            0, tag=name, tensor=make_tensor_proto(table), metadata=create_summary_metadata("", "")
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._add(step, tag=name, simple_value=value)

    def keep(self, paths: Sequence[str]) -> None:
        """Do nothing: event files hold no other files."""

    def close(self, status: str) -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, step: int, **value: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value)])
        self._writer.add_event(Event(wall_time=self._start, step=step, summary=summary))
        self._writer.flush()


@dataclass(slots=True)
class MlflowSink:
    """A run of an MLflow server or store; credentials are those of MLflow's own variables."""

    mlflow: Any
    uri: str
    _client: Any = None
    _run: str = ""
    _start: int = 0
    _experiment: str = field(
        default_factory=lambda: os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    )

    def begin(self, name: str, facts: Facts) -> None:
        """Open a run, with the facts as its parameters."""
        from mlflow.entities import Param

        client = self._client = self.mlflow.MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self._experiment)
        number = (
            client.create_experiment(self._experiment)
            if experiment is None
            else experiment.experiment_id
        )
        self._start = int(time.time() * 1000)
        self._run = client.create_run(number, run_name=f"taciturn {name}").info.run_id
        client.log_batch(
            self._run, params=[Param(key, str(value)[:6000]) for key, value in facts.items()]
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, self._start, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def keep(self, paths: Sequence[str]) -> None:
        """Send the files as artefacts."""
        for path in paths:
            self._client.log_artifact(self._run, path, "model")

    def close(self, status: str) -> None:
        """End the run."""
        ends = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._run, ends[status])


@dataclass(slots=True)
class WandbSink:
    """A run of Weights & Biases, online or offline as WANDB_MODE says.

    It would send more by itself: what is printed, use of the machine, code, git. All that is off.
    """

    wandb: Any
    project: str
    folder: Path
    _run: Any = None
    _start: float = 0.0

    def begin(self, name: str, facts: Facts) -> None:
        """Open a run, with the facts as its configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            silent=True,
        )
        self._start = time.time()
        self._run = self.wandb.init(
            project=self.project or os.environ.get("WANDB_PROJECT", _PROJECT),
            name=f"taciturn {name}",
            dir=str(self.folder),
            config=dict(facts),
            settings=settings,
            reinit="create_new",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics."""
        self._run.log({**values, "_timestamp": self._start}, step=step)

    def keep(self, paths: Sequence[str]) -> None:
        """Send the files as one artefact."""
        artifact = self.wandb.Artifact(f"model-{self._run.id}", type="model")
        for path in paths:
            artifact.add_file(path)
        self._run.log_artifact(artifact)

    def close(self, status: str) -> None:
        """End the run."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "complete" else 1)
