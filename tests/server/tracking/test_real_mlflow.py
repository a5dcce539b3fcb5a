"""The reporter and MLflow's own server, where that is installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, select, update

from support.gateway import GatewayWorld, fit
from taciturn.server.jobs.events import Events
from taciturn.server.schema.tables import tracked_runs
from taciturn.server.tracking.mlflow import Mlflow
from taciturn.server.tracking.reporter import RunReporter
from taciturn.wire.events import JobEvent, PlanEvent, ProgressEvent, StateEvent
from taciturn.wire.jobs import JobState

PROGRAM = shutil.which("mlflow")
_START_S = 120.0

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="mlflow is not installed"),
]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Address of a real server on SQLite."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts")
    command = [str(PROGRAM), "server", "--backend-store-uri", store, "--artifacts-destination"]
    command += [artifacts, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START_S
        while not _answers(address):
            assert process.poll() is None, (tmp_path / "mlflow.log").read_text()
            assert time.monotonic() < end, "MLflow did not start"
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _answers(address: str) -> bool:
    try:
        # No TLS here: certificates would be read for each call, in 40 ms.
        return httpx.get(f"{address}/health", timeout=2, verify=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_it_takes_what_the_gateway_reports_and_a_repeated_report_changes_nothing(
    lite_engine: Engine, tmp_path: Path, url: str
) -> None:
    world = GatewayWorld.for_jobs(lite_engine, tmp_path / "gateway", mlflow_url=url)
    events, settings = Events(world.gateway), world.gateway.settings
    reporter = RunReporter(world.gateway, world.services.artifacts)
    job = world.submit(fit(steps=20, name="notes")).json()["id"]

    def happen(*happened: JobEvent) -> None:
        for event in happened:
            world.gateway.write(lambda c, e=event: events.append(c, job, e, None))  # type: ignore[misc]
        world.clock.forward(10)
        reporter.turn()

    plan = PlanEvent(plan=world.post("plans", fit(steps=20)).json()["plan"])
    happen(StateEvent(state=JobState.RUNNING), plan, ProgressEvent(step=10, steps=20, epsilon=0.5))
    (row,) = world.gateway.rows(select(tracked_runs))
    assert row.attempts == 0
    again = update(tracked_runs).values(run_id=None, sequence=0)
    # As after a crash before it was written down.
    world.gateway.write(lambda c: c.execute(again))
    happen(ProgressEvent(step=20, steps=20, epsilon=1.0), StateEvent(state=JobState.SUCCEEDED))
    (row,) = world.gateway.rows(select(tracked_runs))
    assert row.ended_at_ms is not None
    mlflow = Mlflow.of(settings)
    experiment = mlflow.find_experiment()
    body = {"experiment_ids": [experiment]}
    (run,) = mlflow._ask("POST", "runs/search", **body)["runs"]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "notes")
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert (tags["taciturn.job"], params["steps"]) == (job, "20")
    query = {"run_id": row.run_id, "metric_key": "epsilon"}
    history = mlflow._ask("GET", "metrics/get-history", **query)["metrics"]
    assert [(int(value["step"]), value["value"]) for value in history] == [(10, 0.5), (20, 1.0)]
    mlflow.close()
