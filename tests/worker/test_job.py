"""A worker's life against a strict gateway: every kind of job, from lease to outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from taciturn.engine.generation.synthetic import read_metadata
from taciturn.errors import GuaranteeError, SpecError
from taciturn.reports.figures import ReleasedEvaluation
from taciturn.reports.privacy import Audit, PrivacyReport
from taciturn.wire.events import FailureCode, PlanEvent, Stage, StageEvent
from taciturn.wire.exits import WorkerExit
from taciturn.wire.jobs import (
    DataRef,
    Part,
    RemoteAudit,
    RemoteEvaluate,
    RemoteProbe,
    RemoteSample,
    RemoteSynthesize,
)
from taciturn.wire.results import SampleLine
from taciturn.wire.worker import Assignment, BaseModelFacts, ReleasePlan
from taciturn.worker.egress import Egress
from taciturn.worker.job import Runner
from taciturn.worker.jobs import probe
from worker.fake_gateway import FakeGateway
from worker.jobs import DECLARED, assignment, fit_job, notes, request, source, write

pytestmark = pytest.mark.usefixtures("kept_processes")

MODEL = "mod_0000000000000001"


@pytest.fixture(scope="module")
def fitted(
    base: BaseModelFacts, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FakeGateway, Path]:
    """A gateway after a fit with canaries, and the root of the workspaces."""
    asked = request(base.name, steps=12, canaries=20, data=DataRef(dataset="notes"))
    gateway, root = FakeGateway(fit_job(asked, base, source(rows))), tmp_path_factory.mktemp("root")
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    return gateway, root


def of_model(fitted: tuple[FakeGateway, Path], asked: Assignment) -> tuple[FakeGateway, Path]:
    """A gateway that knows the fitted model."""
    done, root = fitted
    names = {"model": MODEL, "files": tuple(done.files)}
    return FakeGateway(asked.model_copy(update=names), models={MODEL: done.files}), root


def test_fit_releases_a_model_of_the_declared_units(fitted: tuple[FakeGateway, Path]) -> None:
    gateway, _ = fitted
    assert gateway.outcome.succeeded
    assert not gateway.refused
    assert not gateway.incidents
    report = PrivacyReport.model_validate_json(gateway.files["privacy_report.json"])
    plan = gateway.assignment.plan
    assert plan is not None
    assert plan.privacy is not None
    assert report.n_units == DECLARED + 20 == plan.n_units
    assert report.epsilon == plan.privacy.epsilon
    assert report.delta == 1e-5
    assert report.privacy_unit == "split_part(id, '_', 1)"
    assert {"adapter_model.safetensors", "README.md", "report.html"} < set(gateway.files)


def test_fit_charges_each_block_before_it_runs(fitted: tuple[FakeGateway, Path]) -> None:
    gateway, _ = fitted
    assert [(c.first_step, c.steps) for c in gateway.charges.values()] == [(0, 10), (10, 2)]


def test_fit_says_what_is_public(fitted: tuple[FakeGateway, Path]) -> None:
    gateway, _ = fitted
    stages = [event.stage for event in gateway.events if isinstance(event, StageEvent)]
    assert stages == [Stage.LOADING, Stage.READING, Stage.TRAINING, Stage.RELEASING]
    steps = [event.step for event in gateway.progress()]
    assert steps == sorted(steps)  # of those between two ticks the last one leaves
    assert steps[-1] == 12
    assert sum(isinstance(event, PlanEvent) for event in gateway.events) == 1


def test_rows_are_gone_once_the_job_is_over(fitted: tuple[FakeGateway, Path]) -> None:
    _, root = fitted
    left = sorted(p.relative_to(root).name for p in root.rglob("*") if p.is_file())
    assert left == ["canaries.json"]


def test_audit_finds_the_canaries_of_the_fit(fitted: tuple[FakeGateway, Path]) -> None:
    asked = assignment(RemoteAudit(model=MODEL, confidence=0.5), job="job_audit")
    gateway, root = of_model(fitted, asked)
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    assert Audit.model_validate_json(gateway.files["audit.json"]).canaries == 20


def test_samples_of_one_model_follow_each_other(fitted: tuple[FakeGateway, Path]) -> None:
    asked = RemoteSample(model=MODEL, prompts=("The patient", "A"), n=2, max_new_tokens=4, seed=1)
    again = RemoteSample(model=MODEL, prompts=("The",), max_new_tokens=3, stream=True, seed=2)
    gateway, root = of_model(fitted, assignment(asked, job="job_sample"))
    second, _ = of_model(fitted, assignment(again, job="job_stream"))
    gateway.waiting.append(second.assignment)
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert [job for job, outcome in gateway.outcomes if outcome.succeeded] == [
        "job_sample",
        "job_stream",
    ], gateway.incidents
    (line,) = map(json.loads, gateway.files["samples.jsonl"].decode().splitlines())
    assert "".join(chunk.text for chunk in gateway.texts) == line["text"]
    assert gateway.texts[-1].last
    assert gateway.texts[-1].finish_reason == line["finish_reason"]
    fetched = [b for b in gateway.practitioner if b.startswith(b"GET") and b"safetensors" in b]
    assert len(fetched) == 1, "the model stays in memory"


def test_a_model_and_its_base_score_the_same_text(fitted: tuple[FakeGateway, Path]) -> None:
    """One worker, one model in memory: the base is the model without its adapter, and it is back
    afterwards."""
    fields: dict[str, Any] = {
        "model": MODEL,
        "prompts": ("The patient is",),
        "logprobs": 2,
        "echo": True,
    }
    company = {**fields, "prompts": ("A much longer prompt than the other", "The patient is")}
    lines: list[list[SampleLine]] = []
    gateway, root = of_model(fitted, assignment(RemoteSample(**fields, writes=False), job="first"))
    others = (
        ("base", RemoteSample(**fields, writes=False, base=True)),
        ("again", RemoteSample(**company, writes=False, n=2)),
        ("written", RemoteSample(**fields, max_new_tokens=3, seed=1)),
    )
    for job, asked in others:
        gateway.waiting.append(of_model(fitted, assignment(asked, job=job))[0].assignment)
    keep = gateway.files

    class Files(dict[str, bytes]):
        def __setitem__(self, name: str, data: bytes) -> None:
            super().__setitem__(name, data)
            if name == "samples.jsonl":
                lines.append([SampleLine.model_validate_json(row) for row in data.splitlines()])

    gateway.files = Files(keep)
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert all(outcome.succeeded for _, outcome in gateway.outcomes), gateway.incidents
    (first,), (base,), again, (written,) = lines
    assert (first.text, first.scores, first.finish_reason) == ("", (), "length")
    texts = [token.text for token in first.prompt_scores or ()]
    assert "".join(texts) == "The patient is"
    assert [token.text for token in base.prompt_scores or ()] == texts
    assert base.prompt_scores != first.prompt_scores
    # Bit for bit: other jobs, other company, the adapter off and on in between.
    assert [line.prompt_scores for line in again[2:]] == [first.prompt_scores] * 2
    assert len(written.scores or ()) == written.tokens


def test_a_prompt_that_is_read_in_part_is_not_scored(fitted: tuple[FakeGateway, Path]) -> None:
    asked = RemoteSample(
        model=MODEL, prompts=("fever " * 3000,), writes=False, logprobs=0, echo=True
    )
    gateway, root = of_model(fitted, assignment(asked, job="job_long"))
    Runner(root).run(gateway.client())
    assert gateway.outcome.code is FailureCode.BAD_CONFIGURATION


def test_private_evaluation_is_charged_and_of_the_declared_units(
    fitted: tuple[FakeGateway, Path], rows: Path
) -> None:
    part = Part(side="test", test_share=0.5)
    data = DataRef(dataset="notes", part=part)
    asked = RemoteEvaluate(model=MODEL, data=data, target_epsilon=2.0, max_tokens=32)
    release = ReleasePlan(noise_multiplier=2.5, epsilon=2.0, delta=1e-5, n_units=20)
    job = assignment(asked, job="job_eval", source=source(rows), release=release)
    gateway, root = of_model(fitted, job)
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    assert gateway.charged_steps == 1
    found = ReleasedEvaluation.model_validate_json(gateway.files["evaluation.json"])
    assert (found.n_units, found.epsilon, found.basis) == (20, 2.0, "differential privacy")
    assert found.base.token_accuracy.std > 0


def test_public_evaluation_is_free(fitted: tuple[FakeGateway, Path]) -> None:
    asked = RemoteEvaluate(model=MODEL, public_texts=("A public text.", "Another one."))
    gateway, root = of_model(fitted, assignment(asked, job="job_public"))
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    assert not gateway.charges
    assert json.loads(gateway.files["evaluation.json"])["basis"] == "public"


def test_synthetic_records_carry_their_guarantee(
    fitted: tuple[FakeGateway, Path], tmp_path: Path
) -> None:
    asked = RemoteSynthesize(model=MODEL, n=3, prompts=("The",), max_new_tokens=3)
    gateway, root = of_model(fitted, assignment(asked, job="job_synthetic"))
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    path = tmp_path / "synthetic.parquet"
    path.write_bytes(gateway.files["synthetic.parquet"])
    assert pq.read_table(path).num_rows == 3
    assert "DP (epsilon=" in str(read_metadata(path)["policy"])


def test_probe_says_names_and_types_of_columns(rows: Path, tmp_path: Path) -> None:
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=source(rows)))
    assert Runner(tmp_path).run(gateway.client()) is WorkerExit.REPORTED
    columns = json.loads(gateway.files["schema.json"])["columns"]
    assert columns == [{"name": "id", "type": "string"}, {"name": "text", "type": "string"}]


def test_probe_reads_rows_without_a_header_line_as_the_owner_says(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("p1_1,Dupont coughs\n" * 3)
    for names, unit in ((("id", "text"), "id"), ((), "column_1")):
        named = source(path, unit=unit).model_copy(update={"names": names})
        gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=named))
        assert Runner(tmp_path / "root").run(gateway.client()) is WorkerExit.REPORTED
        columns = json.loads(gateway.files["schema.json"])["columns"]
        assert [each["name"] for each in columns] == list(names or ("column_1", "column_2"))


def test_probe_takes_columns_of_any_type_and_of_names_that_differ_in_case(tmp_path: Path) -> None:
    wide = pa.array([{f"field {index}": index for index in range(1000)}])
    half = pa.array([1.0], pa.float16())
    table = pa.table({"ID": ["1"], "id": ["a"], "wide": wide, "half": half})
    pq.write_table(table, tmp_path / "rows.parquet")
    asked = RemoteProbe(dataset="notes")
    gateway = FakeGateway(assignment(asked, source=source(tmp_path / "rows.parquet", unit="id")))
    assert Runner(tmp_path / "root").run(gateway.client()) is WorkerExit.REPORTED
    columns = json.loads(gateway.files["schema.json"])["columns"]
    assert [each["name"] for each in columns] == ["ID", "id", "wide", "half"]
    assert [each["type"][:12] for each in columns] == [
        "string",
        "string",
        "struct<field",
        "halffloat",
    ]


def test_probe_refuses_a_name_that_a_gateway_cannot_hold(tmp_path: Path) -> None:
    path = write([{"id": "a", "x" * 201: "b"}], tmp_path / "notes.jsonl")
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=source(path)))
    Runner(tmp_path / "root").run(gateway.client())
    assert gateway.outcome.code is FailureCode.DATA_UNREADABLE
    assert not gateway.files


def test_probe_refuses_rows_without_a_unit(tmp_path: Path) -> None:
    path = write([*notes(), {"id": "", "text": "whose?"}], tmp_path / "notes.jsonl")
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=source(path)))
    Runner(tmp_path / "root").run(gateway.client())
    assert gateway.outcome.code is FailureCode.DATA_REFUSED
    assert not gateway.files


def test_other_model_than_the_plans_is_refused_before_anything_is_spent(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    wrong = base.model_copy(update={"parameters": base.parameters + 1})
    gateway = FakeGateway(fit_job(request(base.name), base, source(rows)))
    gateway.assignment = gateway.assignment.model_copy(update={"base_model": wrong})
    Runner(tmp_path).run(gateway.client())
    assert gateway.outcome.code is FailureCode.BAD_CONFIGURATION
    assert not gateway.charges


def test_plan_of_less_noise_than_promised_is_refused(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    job = fit_job(request(base.name), base, source(rows))
    assert job.plan is not None
    assert job.plan.privacy is not None
    quiet = job.plan.privacy.model_copy(update={"noise_multiplier": 0.5})
    wrong = job.plan.model_copy(update={"privacy": quiet})
    gateway = FakeGateway(job.model_copy(update={"plan": wrong}))
    Runner(tmp_path).run(gateway.client())
    assert gateway.outcome.code is FailureCode.BAD_CONFIGURATION
    assert not gateway.charges


def test_no_step_runs_that_the_budget_does_not_pay_for(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    job = fit_job(request(base.name, steps=15), base, source(rows))
    gateway = FakeGateway(job, budget_steps=10)
    Runner(tmp_path).run(gateway.client())
    assert gateway.outcome.code is FailureCode.BUDGET_EXCEEDED
    assert gateway.charged_steps == 10
    assert not gateway.files


def test_cancelled_job_releases_nothing(base: BaseModelFacts, rows: Path, tmp_path: Path) -> None:
    job = fit_job(request(base.name, steps=500), base, source(rows))
    gateway = FakeGateway(job.model_copy(update={"lease_s": 0.2}), cancel=True)
    assert Runner(tmp_path).run(gateway.client()) is WorkerExit.REPORTED
    assert not gateway.outcome.succeeded
    assert gateway.outcome.code is None
    assert not gateway.files
    assert gateway.charged_steps < 500


def test_fenced_worker_stops_and_reports_nothing(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    job = fit_job(request(base.name, steps=500), base, source(rows))
    gateway = FakeGateway(job.model_copy(update={"lease_s": 0.2}))

    def another_takes_it(method: str, what: str) -> None:
        if what == "charges" and gateway.charged_steps == 20:
            gateway.lease += 1

    gateway.before = another_takes_it
    told: list[str] = []
    runner = Runner(tmp_path, when_fenced=lambda: told.append("fenced"))
    assert runner.run(gateway.client()) is WorkerExit.FENCED
    assert not gateway.outcomes
    assert not gateway.files
    assert not gateway.incidents
    assert gateway.charged_steps == 20


def test_a_lease_of_one_that_was_killed_is_waited_for(rows: Path, tmp_path: Path) -> None:
    """A pod is replaced sooner than its lease runs out."""
    asked = assignment(RemoteProbe(dataset="notes"), source=source(rows))
    gateway = FakeGateway(asked, held=3)
    assert Runner(tmp_path).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded


def test_one_that_lives_keeps_its_lease(rows: Path, tmp_path: Path) -> None:
    asked = assignment(RemoteProbe(dataset="notes"), source=source(rows))
    gateway = FakeGateway(asked, held=10**9)
    client = gateway.client()
    client.patience_s = 0.1
    assert Runner(tmp_path).run(client) is WorkerExit.FENCED


def test_a_token_that_is_not_valid_any_more_ends_a_worker_for_good(
    rows: Path, tmp_path: Path
) -> None:
    asked = assignment(RemoteProbe(dataset="notes"), source=source(rows))
    client = FakeGateway(asked).client()
    client.token = "of-yesterday"
    assert Runner(tmp_path).run(client) is WorkerExit.FENCED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GuaranteeError("it would break"), WorkerExit.GUARANTEE_REFUSED),
        (SpecError("it cannot be"), WorkerExit.BAD_CONFIGURATION),
        (RuntimeError("a patient with a cough"), WorkerExit.UNREACHABLE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_gateway_does_not_hear_the_launcher_is_told(
    error: Exception,
    code: WorkerExit,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether another try could end otherwise, where no message gets through."""
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=source(rows)))
    client = gateway.client()
    client.patience_s = 0.1

    def broken(*_: object) -> None:
        raise error

    def lost(method: str, what: str) -> None:
        if what == "incidents":
            raise httpx.ConnectError("lost")

    monkeypatch.setattr(probe, "run", broken)
    gateway.before = lost
    assert Runner(tmp_path).run(client) is code
    assert not gateway.outcomes


def test_what_is_said_to_be_spent_is_what_is_charged(
    base: BaseModelFacts, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block before its first step: who cancels then has spent it, and has been told so."""
    gateway = FakeGateway(fit_job(request(base.name, steps=12), base, source(rows)))
    said: list[tuple[int, int, float | None]] = []

    def progress(_: Egress, step: int, steps: int, epsilon: float | None) -> None:
        said.append((step, gateway.charged_steps, epsilon))

    monkeypatch.setattr(Egress, "progress", progress)
    Runner(tmp_path).run(gateway.client())
    assert {0, 1, 10, 12} <= {step for step, _, _ in said}
    assert {charged for _, charged, _ in said} == {10, 12}
    spent = {charged: {e for _, at, e in said if at == charged} for charged in (10, 12)}
    assert all(len(each) == 1 and None not in each for each in spent.values())
    assert 0 < min(spent[10]) < min(spent[12])  # type: ignore[type-var]


def test_lost_answers_change_nothing(base: BaseModelFacts, rows: Path, tmp_path: Path) -> None:
    """Every message is lost once on its way, and every answer once on its way back."""
    gateway = FakeGateway(fit_job(request(base.name, steps=12), base, source(rows)))
    lost: set[tuple[str, str, str]] = set()

    def lose(way: str, method: str, what: str) -> None:
        key = (way, method, f"{what}{len(gateway.charges) if what == 'charges' else ''}")
        if key not in lost:
            lost.add(key)
            raise httpx.ReadError("lost")

    gateway.before = lambda method, what: lose("there", method, what)
    # The lease and the outcome are the ends of what a lost answer can be repeated for.
    gateway.after = lambda m, what: what in ("lease", "outcome") or lose("back", m, what)  # type: ignore[func-returns-value]
    assert Runner(tmp_path).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded
    assert not gateway.refused
    assert gateway.charged_steps == 12
    steps = [event.step for event in gateway.progress()]
    assert steps == sorted(steps)  # of those between two ticks the last one leaves
    assert steps[-1] == 12
