"""What jobs release, from the worker's hand to whoever may have it; on both databases."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from support import released_files
from support.client import Client
from support.gateway import NAMESPACE, GatewayWorld
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.app import create_app
from taciturn.server.jobs.outputs import Outputs
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import incidents, jobs
from taciturn.server.services import Services
from taciturn.wire.datasets import ColumnView, SchemaFile
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.results import JOB_RESULT, FitResult, SampleResult

ASKED = {"kind": "fit", "model": "taciturn/tiny-medical", "data": {"dataset": "phee"}}


class Gate:
    """A gateway, its client, and workers without a process."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.world = GatewayWorld.open(engine, folder).populate(
            unit="id", columns=None, state="probing"
        )
        self.app = create_app(self.world.gateway)
        self.client = Client(self.app, raise_server_exceptions=False)
        self.services: Services = self.app.state.services
        self.schemas: dict[str, Any] = {}
        self.finishing = Outputs(self.services.artifacts, self.services.models, self)

    def probed(self, connection: Any, name: str, columns: Any) -> None:
        self.schemas[name] = columns

    def get(self, who: str, path: str, **headers: str) -> Any:
        return self.client.get(f"/v1/{path}", headers={**self.world.headers(who), **headers})

    def put(self, worker: dict[str, str], job: str, name: str, data: bytes) -> Any:
        return self.client.put(f"/v1/worker/jobs/{job}/files/{name}", content=data, headers=worker)

    def succeed(self, job: str) -> None:
        """What the job's ending does."""

        def work(connection: Any) -> None:
            row = connection.execute(select(jobs).where(jobs.c.id == job)).first()
            assert row is not None
            values = {**self.finishing.complete(connection, row), "state": "succeeded"}
            connection.execute(update(jobs).where(jobs.c.id == job).values(values))

        self.world.gateway.write(work)

    def fit(self, **files: bytes) -> str:
        """A fit whose worker has handed everything in."""
        job = self.world.add_job(
            JobKind.FIT, request=ASKED, plan=released_files.plan().model_dump(mode="json")
        )
        worker = self.world.worker_headers(job)
        for name, data in {**released_files.fit_files(), **files}.items():
            assert self.put(worker, job, name, data).status_code == 204
        return job

    def model(self) -> str:
        """A fitted model of paul's."""
        job = self.fit()
        self.succeed(job)
        found: str = self.get("paul", f"jobs/{job}/result").json()["model"]["id"]
        return found


@pytest.fixture
def gate(engine: Engine, tmp_path: Path) -> Gate:
    return Gate(engine, tmp_path)


def test_a_fit_becomes_a_model(gate: Gate) -> None:
    job = gate.fit()
    assert gate.get("paul", f"jobs/{job}/result").json()["code"] == "not_ready"
    gate.succeed(job)
    gate.succeed(job)  # a crash in between repeats it
    answer = gate.get("paul", f"jobs/{job}/result")
    result = JOB_RESULT.validate_python(answer.json())
    assert isinstance(result, FitResult)
    line = "DP (epsilon=3, delta=1e-06, unit=id)"
    assert (result.model.policy.text, answer.headers["Taciturn-Policy"]) == (line, line)
    assert {"README.md", "report.html", "adapter_model.safetensors"} <= set(result.model.files)
    listed = gate.get("paul", "models").json()["items"]
    assert [model["id"] for model in listed] == [result.model.id]


def test_files_come_back_as_they_were_and_in_ranges(gate: Gate) -> None:
    model, data = gate.model(), released_files.safetensors()
    path = f"models/{model}/files/adapter_model.safetensors"
    whole = gate.get("olga", path)
    assert whole.content == data
    assert whole.headers["ETag"].strip('"') == hashlib.sha256(data).hexdigest()
    assert whole.headers["Taciturn-Policy"].startswith("DP (epsilon=3")
    assert whole.headers["Content-Security-Policy"].startswith("sandbox")
    part = gate.get("paul", path, Range="bytes=2-5")
    assert (part.status_code, part.content) == (206, data[2:6])
    assert part.headers["Content-Range"] == f"bytes 2-5/{len(data)}"
    assert gate.get("paul", path, Range="bytes=-4").content == data[-4:]
    for bad in ("bytes=999999-", "bytes=5-2", "bytes=0-1,3-4", "lines=1-2"):
        assert gate.get("paul", path, Range=bad).status_code == 416


def test_card_and_page_are_the_gateways_own(gate: Gate) -> None:
    """Whatever the worker sends under these names is dropped."""
    job = gate.fit(**{"README.md": b"a row", "report.html": b"<script>a row</script>"})
    gate.succeed(job)
    card = gate.get("paul", f"jobs/{job}/files/README.md").text
    page = gate.get("paul", f"jobs/{job}/files/report.html").text
    assert "fine-tuned with differential privacy" in card
    assert "<script>a row" not in page
    assert "epsilon" in page


@pytest.mark.parametrize("path", ["models/{}", "models/{}/files/adapter_model.safetensors"])
def test_models_are_for_their_maker_and_the_owner(gate: Gate, path: str) -> None:
    model = gate.model()
    found = {who: gate.get(who, path.format(model)).status_code for who in gate.world.users}
    auditor = 200 if path == "models/{}" else 404
    assert found == {
        "paul": 200, "olga": 200, "ann": auditor, "petra": 404, "oscar": 404, "adam": 403,
        "otto": 404, "bea": 404,
    }  # fmt: skip
    report = gate.get("ann", f"models/{model}/files/privacy_report.json")
    assert PrivacyReport.model_validate_json(report.content) == released_files.report()
    assert "signing key" in gate.get("ann", f"models/{model}/certificate").json()["detail"]


def test_a_removed_model_is_gone_with_its_files(gate: Gate) -> None:
    model = gate.model()
    headers = gate.world.headers("petra")
    assert gate.client.delete(f"/v1/models/{model}", headers=headers).status_code == 404
    headers = gate.world.headers("paul")
    assert gate.client.delete(f"/v1/models/{model}", headers=headers).status_code == 204
    assert gate.get("paul", f"models/{model}").status_code == 404
    folder = gate.world.gateway.settings.data_dir / "files"
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"epsilon": 2.0}, "epsilon"),
        ({"n_units": 99}, "n_units"),
        ({"base_model": "other"}, "base_model"),
        ({"guarantee": "none"}, "guarantee"),
        ({"steps": 4}, "steps"),
        ({"noise_multiplier": 0.5}, "noise_multiplier"),
        ({"privacy_unit": "one record"}, "privacy_unit"),
        ({"max_records_per_unit": 2}, "max_records_per_unit"),
    ],
)
def test_a_report_of_another_run_makes_no_model(
    gate: Gate, wrong: dict[str, Any], word: str
) -> None:
    text = released_files.report(**wrong).model_dump_json().encode()
    job = gate.fit(**{"privacy_report.json": text})
    with pytest.raises(ProblemError, match=word):
        gate.succeed(job)
    assert gate.get("olga", "models").json()["items"] == []


def test_a_job_that_released_nothing_has_not_succeeded(gate: Gate) -> None:
    for kind in JobKind:
        with pytest.raises(ProblemError, match="has to release"):
            gate.succeed(gate.world.add_job(kind, request=ASKED))


def test_a_worker_needs_the_lease(gate: Gate) -> None:
    job = gate.world.add_job(JobKind.PROBE)
    old, new = gate.world.worker_headers(job, 1), gate.world.worker_headers(job, 2)
    schema = b'{"columns": [{"name": "id", "type": "string"}]}'
    assert gate.put(old, job, "schema.json", schema).json()["code"] == "fenced"
    assert gate.put({**new, "Taciturn-Lease": "3"}, job, "schema.json", schema).status_code == 409
    other = gate.world.add_job(JobKind.PROBE)
    assert gate.put(new, other, "schema.json", schema).status_code == 403
    assert gate.put(gate.world.headers("paul"), job, "schema.json", schema).status_code in (
        403,
        422,
    )
    assert gate.put(new, job, "schema.json", schema).status_code == 204
    gate.world.set_job_state(job, JobState.SUCCEEDED)
    assert gate.put(new, job, "schema.json", schema).json()["code"] == "fenced"


def test_a_late_file_of_a_fenced_worker_lies_where_nobody_reads(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = gate.world.add_job(JobKind.PROBE)
    old = gate.world.worker_headers(job, 1)
    store = gate.services.artifacts.store
    put = type(store).write

    def overtaken(self: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(type(store), "write", put)
        new = gate.world.worker_headers(job, 2)
        assert gate.put(
            new, job, "schema.json", b'{"columns": [{"name": "b", "type": "string"}]}'
        ).is_success
        return put(self, *arguments)

    monkeypatch.setattr(type(store), "write", overtaken)
    late = gate.put(old, job, "schema.json", b'{"columns": [{"name": "a", "type": "string"}]}')
    assert late.json()["code"] == "fenced"
    kept = gate.services.artifacts.read(job, "schema.json")
    assert kept is not None
    assert json.loads(kept)["columns"][0]["name"] == "b"


def test_refusals_are_logged_without_what_was_in_the_file(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    job = gate.world.add_job(JobKind.PROBE)
    worker = gate.world.worker_headers(job)
    with caplog.at_level(logging.WARNING):
        for name, data in (("schema.json", b'[{"n": "Dupont"}]'), ("Dupont.txt", b"x")):
            refused = gate.put(worker, job, name, data)
            assert refused.json()["code"] == "file_refused"
            assert "Dupont" not in refused.json()["detail"]
    assert sum(each.name.endswith("artifacts") for each in caplog.records) == 2
    assert "Dupont" not in str([record.__dict__ for record in caplog.records])
    assert gate.put(worker, job, "schema.json", b" " * (2**20 + 1)).json()["code"] == "too_large"
    incoming = gate.world.gateway.settings.data_dir / "incoming"
    assert list(incoming.iterdir()) == []


def test_a_probe_tells_the_schema(gate: Gate) -> None:
    job = gate.world.add_job(JobKind.PROBE, requester="olga")
    column = ColumnView(name="id", type="string")
    schema = SchemaFile(columns=(column,)).model_dump_json().encode()
    gate.put(gate.world.worker_headers(job), job, "schema.json", schema)
    gate.succeed(job)
    assert gate.schemas == {"phee": (column,)}
    assert gate.get("olga", f"jobs/{job}/result").json()["columns"] == [column.model_dump()]


def test_samples_and_synthetic_records(gate: Gate) -> None:
    asked = {"kind": "sample", "prompts": ["Once"], "n": 2}
    job = gate.world.add_job(JobKind.SAMPLE, request=asked)
    data = released_files.samples(("Once", "upon a time"), ("Once", "more"))
    gate.put(gate.world.worker_headers(job), job, "samples.jsonl", data)
    gate.succeed(job)
    result = JOB_RESULT.validate_python(gate.get("paul", f"jobs/{job}/result").json())
    assert isinstance(result, SampleResult)
    assert [line.text for line in result.samples] == ["upon a time", "more"]
    for who, status in {"petra": 404, "oscar": 404, "ann": 404, "olga": 200}.items():
        assert gate.get(who, f"jobs/{job}/result").status_code == status
        assert gate.get(who, f"jobs/{job}/files/samples.jsonl").status_code == status

    job = gate.world.add_job(JobKind.SYNTHESIZE, request={"kind": "synthesize", "n": 2})
    table = released_files.parquet({"text": ["a", "b"]})
    gate.put(gate.world.worker_headers(job), job, "synthetic.parquet", table)
    gate.succeed(job)
    assert gate.get("paul", f"jobs/{job}/files/synthetic.parquet").content == table


def test_a_failed_job_has_no_result(gate: Gate) -> None:
    job = gate.world.add_job(JobKind.FIT, state=JobState.FAILED)
    assert gate.get("paul", f"jobs/{job}/result").json()["code"] == "conflict"


def test_the_log_of_a_failure_is_the_owners(gate: Gate) -> None:
    job = gate.world.add_job(JobKind.FIT, state=JobState.FAILED)
    row = {
        "id": "inc_1",
        "job_id": job,
        "namespace": NAMESPACE,
        "log": "row 7: François Dupont".encode(),
        "created_at_ms": gate.world.gateway.now_ms(),
    }
    gate.world.gateway.write(lambda connection: connection.execute(insert(incidents).values(row)))
    assert gate.get("olga", "incidents/inc_1").json()["log"] == "row 7: François Dupont"
    found = {who: gate.get(who, "incidents/inc_1").status_code for who in gate.world.users}
    assert found == {
        "olga": 200, "oscar": 404, "paul": 403, "petra": 403, "ann": 403, "adam": 403,
        "otto": 404, "bea": 404,
    }  # fmt: skip


def test_base_models(gate: Gate) -> None:
    gate.services.base_models.register_embedded()
    gate.services.base_models.register_embedded()
    (embedded,) = gate.get("paul", "base-models").json()["items"]
    assert embedded["name"] == "taciturn/tiny-medical"
    assert (embedded["parameters"], embedded["context_length"]) == (4_737_280, 512)
    new = {"name": "gpt2", "parameters": 124_439_808, "context_length": 1024, "vocabulary": 50257}

    def add(who: str, **changes: Any) -> int:
        headers = gate.world.headers(who)
        return gate.client.post(
            "/v1/base-models", json={**new, **changes}, headers=headers
        ).status_code

    assert (add("paul"), add("adam"), add("adam"), add("adam", vocabulary=9)) == (
        403,
        201,
        201,
        409,
    )
    assert gate.get("paul", "base-models/taciturn/tiny-medical").status_code == 200
    path = "/v1/base-models/gpt2"
    assert gate.client.delete(path, headers=gate.world.headers("olga")).status_code == 403
    assert gate.client.delete(path, headers=gate.world.headers("adam")).status_code == 204
    assert gate.client.delete(path, headers=gate.world.headers("adam")).status_code == 404
