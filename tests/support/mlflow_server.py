"""A small MLflow server: the calls of its REST API that a gateway makes, checked as it does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "mlflow secret"
_API = "/api/2.0/mlflow/"
_STATUSES = {"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"}


@dataclass
class Run:
    """A run; metrics are kept by what makes them one, as MLflow's tables do."""

    experiment: str
    name: str
    start_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: set[tuple[str, float, int, int]] = field(default_factory=set)
    status: str = "RUNNING"
    end_ms: int | None = None

    def values(self, key: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, in order."""
        return sorted((step, value) for name, value, _, step in self.metrics if name == key)


@dataclass
class MlflowServer:
    """What came in, and how it answers.

    Attributes:
        answers: statuses of the next answers, before anything is done.
        lost: paths whose next answer is lost, once their work is done.
    """

    port: int = 0
    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    token: str = TOKEN

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def run_of(self, job: str) -> Run:
        """The one run of a job."""
        (run,) = (run for run in self.runs.values() if run.tags.get("taciturn.job") == job)
        return run

    def ask(self, method: str, path: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Do what a request says, as MLflow's server does."""
        if (method, path) == ("GET", "experiments/get-by-name"):
            number = self.experiments.get(fields["experiment_name"])
            if number is None:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
            return 200, {"experiment": {"experiment_id": number}}
        if path == "experiments/create":
            number = self.experiments[fields["name"]] = str(len(self.experiments) + 1)
            return 200, {"experiment_id": number}
        if path == "runs/search":
            wanted = fields["filter"].rpartition("'")[0].rpartition("'")[2]
            assert fields["filter"] == f"tags.`taciturn.job` = '{wanted}'"
            matches = [
                {"info": {"run_id": number}}
                for number, run in self.runs.items()
                if run.experiment in fields["experiment_ids"]
                and run.tags.get("taciturn.job") == wanted
            ]
            return 200, {"runs": matches[: fields["max_results"]]} if matches else {}
        if path == "runs/create":
            number = f"run{len(self.runs) + 1}"
            run = Run(fields["experiment_id"], fields["run_name"], fields["start_time"])
            self.runs[number] = run
            run.tags |= {tag["key"]: tag["value"] for tag in fields["tags"]}
            return 200, {"run": {"info": {"run_id": number}}}
        run = self.runs.get(fields["run_id"])  # type: ignore[assignment]
        if run is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        if path == "runs/log-batch":
            return self._log(run, fields)
        assert path == "runs/update"
        assert fields["status"] in _STATUSES
        run.status, run.end_ms = fields["status"], fields.get("end_time", run.end_ms)
        return 200, {"run_info": {}}

    def _log(self, run: Run, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for metric in fields.get("metrics", ()):
            assert isinstance(metric["timestamp"], int)
            run.metrics.add((metric["key"], metric["value"], metric["timestamp"], metric["step"]))
        for param in fields.get("params", ()):
            if run.params.setdefault(param["key"], param["value"]) != param["value"]:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE"}
        run.tags |= {tag["key"]: tag["value"] for tag in fields.get("tags", ())}
        return 200, {}


@contextmanager
def mlflow_server() -> Iterator[MlflowServer]:
    """One that runs, on a port of its own."""
    server = MlflowServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            path = parts.path.removeprefix(_API)
            server.calls.append(path)
            if self.headers.get("Authorization") != f"Bearer {server.token}":
                status, answer = 401, dict[str, Any]()
            elif server.answers:
                status, answer = server.answers.pop(0), {}
            else:
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                try:
                    fields = json.loads(body) if body else query
                    status, answer = server.ask(self.command, path, fields)
                except Exception as error:
                    server.wrong.append(f"{path}: {type(error).__name__} {error}")
                    status, answer = 400, {}
            if path in server.lost:
                server.lost.remove(path)
                status = 503
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = listening.server_address[1]
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
