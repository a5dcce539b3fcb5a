"""Whatever goes wrong, and wherever: nothing of the rows comes out but to their owner."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.training import loop
from taciturn.engine.training.checkpoint import CheckpointStore
from taciturn.reports.html import report
from taciturn.wire.events import FAILURES, CountEvent, FailureCode
from taciturn.wire.jobs import DataRef, RemoteEvaluate, RemoteProbe
from taciturn.wire.worker import Assignment, BaseModelFacts, Incident, Outcome, ReleasePlan
from taciturn.worker import allowlist
from taciturn.worker.context import JobContext
from taciturn.worker.egress import Egress
from taciturn.worker.job import Runner
from taciturn.worker.jobs import evaluate, fit, probe
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, plan_of, request, source, write
from worker.leaks import (
    CANARY,
    ERRORS,
    LENGTH,
    ROWS,
    UNITS,
    Bomb,
    Sites,
    leaks,
    quoting,
    rows,
    traced,
)

MODEL = "mod_0000000000000001"
LOADED = (evaluate, fit, probe, report)  # before a job needs them: sites are calls, not imports
SITES = {"fit": 40, "probe": 125, "evaluate": 35}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(rows(), tmp_path_factory.mktemp("rows") / "notes.jsonl")


@pytest.fixture(scope="module")
def fit_job(base: BaseModelFacts, path: Path) -> Assignment:
    asked = request(base.name, steps=2, canaries=20)
    rows_of = source(path)
    return assignment(asked, source=rows_of, plan=plan_of(asked, base), base_model=base)


@pytest.fixture(scope="module")
def model(fit_job: Assignment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    gateway = run(fit_job, tmp_path_factory.mktemp("fitted"))
    assert gateway.outcome.succeeded, gateway.incidents
    return gateway.files


@pytest.fixture(scope="module")
def jobs(base: BaseModelFacts, model: dict[str, bytes], path: Path) -> dict[str, Assignment]:
    asked = RemoteEvaluate(
        model=MODEL, data=DataRef(dataset="notes"), target_epsilon=2.0, max_tokens=32
    )
    evaluation = assignment(
        asked,
        source=source(path),
        release=ReleasePlan(noise_multiplier=2.5, epsilon=2.0, delta=1e-5, n_units=40),
        model=MODEL,
        files=tuple(model),
    )
    look = assignment(RemoteProbe(dataset="notes"), source=source(path))
    asked_for = request(
        base.name, steps=2
    )  # without canaries, whose drawing takes most of the time
    short = assignment(
        asked_for, source=source(path), plan=plan_of(asked_for, base), base_model=base
    )
    return {"fit": short, "probe": look, "evaluate": evaluation}


def run(job: Assignment, root: Path, model: dict[str, bytes] | None = None) -> FakeGateway:
    """Run a job; what a worker throws out of its own process is nobody's to see."""
    gateway = FakeGateway(job, models={MODEL: model or {}})
    with suppress(Exception):  # the process would have died of it
        Runner(root).run(gateway.client())
    return gateway


def test_the_rows_are_as_they_are_meant_to_be() -> None:
    found = rows()
    assert len(found) == ROWS
    assert len({row["id"].split("_")[0] for row in found}) == UNITS
    assert max(len(row["text"]) for row in found) == LENGTH


def test_a_job_that_succeeds(
    fit_job: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    real = loop._report

    def noted(run: Any, step: int, counts: Any, clock: Any) -> None:
        losses.extend((counts.loss_sum, counts.loss_sum / max(1, counts.n_units), counts.norm_sum))
        real(run, step, counts, clock)

    monkeypatch.setattr(loop, "_report", noted)
    gateway = run(fit_job, tmp_path)
    assert gateway.outcome.succeeded
    assert len(losses) == 6
    assert leaks(gateway, [loss for loss in losses if loss]) == []


def _step_fails(error: Exception) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        def failing(*_: object) -> None:
            raise error

        patch.setattr(loop, "private_step", failing)

    return arrange


def _not_a_number(patch: pytest.MonkeyPatch) -> None:
    real = CausalLmLoss.forward
    patch.setattr(CausalLmLoss, "forward", lambda self, batch: real(self, batch) * float("nan"))


def _disk_full(patch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, quoting())

    patch.setattr(CheckpointStore, "save", full)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[FailureCode]]] = {
    "a step": (_step_fails(ValueError(quoting())), {FailureCode.INTERNAL}),
    "out of memory": (_step_fails(MemoryError(quoting())), {FailureCode.RESOURCES}),
    "GPU out of memory": (_step_fails(torch.OutOfMemoryError(quoting())), {FailureCode.RESOURCES}),
    "NaN": (_not_a_number, {FailureCode.MODEL_REFUSED, FailureCode.GUARANTEE_REFUSED}),
    "disk full": (_disk_full, {FailureCode.STORAGE}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_stage_that_fails(
    fault: str, fit_job: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange, codes = FAULTS[fault]
    arrange(monkeypatch)
    gateway = run(fit_job, tmp_path)
    assert gateway.outcome.code in codes, gateway.incidents
    assert leaks(gateway) == []
    assert gateway.outcome.incident == "inc_0000000000000001"


def test_the_owner_can_read_all_of_it(
    fit_job: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _step_fails(ValueError(quoting()))(monkeypatch)
    (log,) = run(fit_job, tmp_path).incidents
    assert CANARY in log
    assert "Traceback" in log


def test_bad_sql_on_real_rows_is_no_failure_at_all(
    base: BaseModelFacts, path: Path, tmp_path: Path
) -> None:
    """Whether a row makes it fail is what a practitioner would like to know."""
    select = f"CASE WHEN text LIKE '{CANARY[:6]}%' THEN CAST(text AS INTEGER) END AS n, text, id"
    asked = request(base.name, steps=2, data=DataRef(dataset="notes", select=select))
    job = assignment(asked, source=source(path), plan=plan_of(asked, base), base_model=base)
    gateway = run(job, tmp_path)
    assert gateway.outcome.succeeded, gateway.incidents
    # The request, and so its select, is the practitioner's own; no message repeats it.
    assert leaks(gateway) == []


def test_a_corrupt_file(fit_job: Assignment, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(rows()), broken)
    content = bytearray(broken.read_bytes())
    content[100:400] = bytes(300)
    broken.write_bytes(content)
    gateway = run(fit_job.model_copy(update={"source": source(broken)}), tmp_path / "root")
    assert gateway.outcome.code is FailureCode.DATA_UNREADABLE, gateway.incidents
    assert leaks(gateway) == []


def _sites(jobs: dict[str, Assignment], model: dict[str, bytes], root: Path) -> dict[str, Sites]:
    found = {}
    for kind, job in jobs.items():
        found[kind] = Sites()
        with traced(found[kind].note):
            assert run(job, root / kind, model).outcome.succeeded
    return found


@pytest.mark.parametrize("one_in", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_exceptions_that_quote_a_row_at_200_sites(
    one_in: int, jobs: dict[str, Assignment], model: dict[str, bytes], tmp_path: Path
) -> None:
    chance = random.Random(2026 + one_in)
    counts = {kind: -(-count // one_in) for kind, count in SITES.items()}
    sites = _sites(jobs, model, tmp_path / "sites")
    exploded, reported = 0, 0
    for kind, count in counts.items():
        for number in range(count):
            bomb = Bomb(sites[kind].draw(chance), chance.choice(ERRORS)())
            with traced(bomb):
                gateway = run(jobs[kind], tmp_path / f"{kind}-{number}", model)
            exploded += bomb.exploded
            reported += any(not outcome.succeeded for _, outcome in gateway.outcomes)
            assert leaks(gateway) == [], (bomb.code, bomb.error)
            assert all(outcome.code in FAILURES for _, outcome in gateway.outcomes if outcome.code)
    assert exploded >= 0.9 * sum(counts.values())
    assert reported >= 0.7 * sum(counts.values())


# Workers that leak, each in its own way: the checks above must see it.


class _IncidentNamedAfterTheError(Egress):
    def failed(self, error: BaseException) -> None:
        self.client.outcome(Outcome(succeeded=False, incident=str(error)))


class _LogInTheUrl(Egress):
    def failed(self, error: BaseException) -> None:
        incident = self.client.incident(Incident(log=str(error)))
        try:
            self.client.file(str(error), Path(__file__))
        except Exception:
            self.client.outcome(Outcome(succeeded=False, incident=incident.incident))


class _TextOfTheError(Egress):
    def failed(self, error: BaseException) -> None:
        self.text(str(error), "stop")
        super().failed(error)


class _CountOfRows(Egress):
    def failed(self, error: BaseException) -> None:
        self._say(CountEvent(done=ROWS, of=ROWS))
        super().failed(error)


MUTANTS = (_IncidentNamedAfterTheError, _LogInTheUrl, _TextOfTheError, _CountOfRows)


@pytest.mark.parametrize("egress", MUTANTS)
def test_mutant_that_leaks_is_found(
    egress: type[Egress],
    jobs: dict[str, Assignment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(context: JobContext) -> None:
        raise ValueError(quoting())

    monkeypatch.setattr("taciturn.worker.job.Egress", egress)
    monkeypatch.setattr("taciturn.worker.job.do", failing)
    assert leaks(run(jobs["probe"], tmp_path)) != []


def test_mutant_that_releases_rows_is_found(
    jobs: dict[str, Assignment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema with a row in it is stopped by the check of files, and found without it."""

    def careless(context: JobContext) -> None:
        schema = context.workspace.make_folder("results") / "schema.json"
        schema.write_text(f'{{"columns": [], "example": "{CANARY}"}}')
        context.egress.file(schema)

    monkeypatch.setattr("taciturn.worker.job.do", careless)
    stopped = run(jobs["probe"], tmp_path / "stopped")
    assert not stopped.outcome.succeeded
    assert leaks(stopped) == []
    monkeypatch.setattr(allowlist, "check", lambda *_: None)
    assert leaks(run(jobs["probe"], tmp_path / "found")) != []
