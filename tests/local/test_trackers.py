"""Trackers keep public values, as their own readers see them; private curves stay here."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pandas as pd
import pytest
from typer.testing import CliRunner

import taciturn
from taciturn.cli.main import app
from taciturn.errors import MissingDependencyError, SpecError
from taciturn.local.trackers import open_trackers

SETTINGS: dict[str, Any] = {
    "text_field": "text",
    "target_epsilon": 8,
    "batch_size": 6,
    "steps": 3,
    "method": "lora",
    "r": 2,
    "max_tokens": 24,
}


def needs(package: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(
        not there, reason=f"{package} is not installed; pip install 'taciturn[{package}]'"
    )


def rows(n: int = 24) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"patient {i} had a cough" for i in range(n)]})


def fit(model: Path, output: Path | None, **more: Any) -> taciturn.LLM:
    llm = taciturn.LLM(str(model))
    llm.fit(rows(), output=output, **SETTINGS, **more)
    return llm


def lines(path: Path) -> list[tuple[str, str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["name"], row["step"], row["value"]) for row in csv.DictReader(file)]


def test_csv(tiny_llama: Path, tmp_path: Path) -> None:
    model = fit(tiny_llama, tmp_path / "out", report_to="csv")
    kept = lines(tmp_path / "out" / "tracking" / "progress.csv")
    assert model.privacy is not None
    assert ("epsilon", "3", str(model.privacy.epsilon)) in kept
    assert ("progress", "1", str(1 / 3)) in kept
    assert ("status", "", "complete") in kept
    assert {name for name, *_ in kept} >= {"base_model", "noise_multiplier", "file"}
    assert not any("private" in field for line in kept for field in line)
    model.evaluate(["a cough"] * 3, report_to=["csv"])
    names = [name for name, *_ in lines(tmp_path / "out" / "tracking" / "progress.csv")]
    assert "evaluate/fitted/nats_per_token" in names


def test_private_curves_lie_in_the_private_folder(tiny_llama: Path, tmp_path: Path) -> None:
    fit(tiny_llama, tmp_path / "out", report_to="csv", show_private=True)
    kept = lines(tmp_path / "out" / "private" / "tracking" / "progress.csv")
    assert {"private/mean_loss", "private/mean_norm"} <= {name for name, *_ in kept}
    assert not (tmp_path / "out" / "tracking").exists()


@pytest.mark.parametrize(
    ("report_to", "show_private", "message"),
    [
        ("csv:s3://bucket/x.csv", False, "writes files on this machine"),
        ("tensorboard:gs://bucket", False, "writes files on this machine"),
        ("csv:{out}/shared.csv", True, "in the folder that may be shared"),
        ("csv:{out}/private/../shared.csv", True, "in the folder that may be shared"),
        ("mlflow:http://me:word@host", False, "password in the URL"),
    ],
)
def test_places_that_are_refused(
    report_to: str, show_private: bool, message: str, tmp_path: Path
) -> None:
    entry = report_to.format(out=tmp_path / "out")
    with pytest.raises(SpecError, match=message) as error:
        open_trackers([entry], tmp_path / "out", show_private=show_private)
    assert "word" not in str(error.value).replace("password", "").replace("PASSWORD", "")


def test_private_curves_need_a_tracker() -> None:
    with pytest.raises(SpecError, match="name one with report_to"):
        open_trackers([], None, show_private=True)


@needs("mlflow")
@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:1", "https://host", "databricks", "file://host/x", "postgresql://h/x"]
)
def test_private_curves_never_go_to_a_url(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if uri != "databricks":
        with pytest.raises(SpecError, match="never to a URL"):
            open_trackers([f"mlflow:{uri}"], tmp_path, show_private=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SpecError, match=r"never to a URL|databricks"):
        open_trackers(["mlflow"], tmp_path, show_private=True)


@needs("wandb")
def test_private_curves_never_go_to_wandb(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="meant for a server"):
        open_trackers(["wandb"], tmp_path, show_private=True)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_told_before_anything_is_spent(
    kind: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == kind]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'taciturn\[{kind}\]'"):
        fit(tiny_llama, tmp_path / "out", report_to=[kind])
    assert not (tmp_path / "out").exists()


def test_unknown_trackers_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match="there is no tracker 'comet'; choose among tensorboard"):
        fit(tiny_llama, None, report_to="comet")


def test_the_command_line_and_yaml_have_it(tiny_llama: Path, tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "notes.csv", index=False)
    job = tmp_path / "job.yaml"
    job.write_text(f"model: {tiny_llama}\ndata: {tmp_path / 'notes.csv'}\nreport_to: [csv]\n")
    options = ["--target-epsilon", "8", "--steps", "2", "--batch-size", "6", "--method", "lora"]
    out = ["--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["fit", "-f", str(job), *options, *out, "--show-private"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "private" / "tracking" / "progress.csv").is_file()
    place = f"csv:{tmp_path / 'mine.csv'}"
    command = ["fit", "-f", str(job), *options, "--output", str(tmp_path / "two")]
    result = CliRunner().invoke(app, [*command, "--report-to", place])
    assert result.exit_code == 0, result.output
    assert ("status", "", "complete") in lines(tmp_path / "mine.csv")


@needs("tensorboard")
def test_tensorboards_own_reader(tiny_llama: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = fit(tiny_llama, tmp_path / "out", report_to="tensorboard", show_private=True)
    folder = tmp_path / "out" / "private" / "tracking" / "tensorboard"
    reader = EventAccumulator(str(folder))
    reader.Reload()
    assert model.privacy is not None
    epsilons = reader.Scalars("epsilon")
    assert [event.step for event in epsilons] == [1, 2, 3]
    assert epsilons[-1].value == pytest.approx(model.privacy.epsilon, rel=1e-6)
    assert len({event.wall_time for event in epsilons}) == 1, "steps bear no times"
    assert "private/mean_loss" in reader.Tags()["scalars"]
    (plan,) = reader.Tensors("fit")
    assert b"noise_multiplier" in plan.tensor_proto.string_val[0]


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Records of an offline run: LevelDB's log format behind a header of 7 bytes."""
    position, parts, block = 7, b"", 32 * 1024
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = struct.unpack("<4xHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@needs("wandb")
def test_wandb_offline(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    model = fit(tiny_llama, tmp_path / "out", report_to="wandb")
    (path,) = (tmp_path / "out" / "tracking").rglob("*.wandb")
    records = [Record.FromString(data) for data in wandb_records(path.read_bytes())]
    kinds = {record.WhichOneof("record_type") for record in records}
    assert not kinds & {"stats", "output", "output_raw"}, "neither machine nor screen"
    items = [
        (item.key or "/".join(item.nested_key), item.value_json)
        for record in records
        if record.HasField("history")
        for item in record.history.item
    ]
    assert model.privacy is not None
    assert ("epsilon", str(model.privacy.epsilon)) in items
    assert {name for name, _ in items} <= {
        *("epsilon", "progress", "checkpoint"),
        *("_step", "_timestamp", "_runtime"),
    }


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of MLflow on this machine."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *stores, str(folder / "files")],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # and its workers
        server.wait(timeout=30)


@needs("mlflow")
@pytest.mark.skipif(
    importlib.util.find_spec("flask") is None, reason="a server needs mlflow, not mlflow-skinny"
)
@pytest.mark.thorough
def test_a_real_mlflow_server(tiny_llama: Path, tmp_path: Path, mlflow_server: str) -> None:
    import mlflow

    model = fit(tiny_llama, tmp_path / "out", report_to=[f"mlflow:{mlflow_server}"])
    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("taciturn")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert model.privacy is not None
    assert run.info.status == "FINISHED"
    assert run.data.params["epsilon"] == str(model.privacy.epsilon)
    history = client.get_metric_history(run.info.run_id, "epsilon")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert history[-1].value == model.privacy.epsilon
    assert len({metric.timestamp for metric in history}) == 1, "steps bear no times"
    names = {Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, "model")}
    assert "adapter_model.safetensors" in names
    assert not any("private" in name for name in names)
    assert set(run.data.metrics) == {"epsilon", "progress", "checkpoint"}
    with pytest.raises(SpecError, match="never to a URL"):
        open_trackers([f"mlflow:{mlflow_server}"], tmp_path / "out", show_private=True)
