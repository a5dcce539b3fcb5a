"""A worker's fit that learns from public text first: whole, and refused where it is private."""

from __future__ import annotations

from pathlib import Path

import pytest

from taciturn.reports.privacy import PrivacyReport
from taciturn.wire.events import FailureCode
from taciturn.wire.exits import WorkerExit
from taciturn.wire.worker import Assignment, BaseModelFacts, PublicSourceRef
from taciturn.worker.job import Runner
from worker.fake_gateway import FakeGateway
from worker.jobs import DECLARATION, fit_job, public, request, source, write


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    rows = [{"case": f"Case {i}: a cough.", "other": "x"} for i in range(24)]
    return write(rows, tmp_path / "cases.jsonl")


def job(base: BaseModelFacts, rows: Path, text: PublicSourceRef) -> Assignment:
    asked = request(base.name, steps=2, public_data="cases")
    return fit_job(asked, base, source(rows)).model_copy(update={"public_source": text})


def test_it_is_learned_and_named_in_the_report(
    base: BaseModelFacts, rows: Path, cases: Path, tmp_path: Path
) -> None:
    gateway = FakeGateway(job(base, rows, public(cases, text_field="case")))
    assert Runner(tmp_path / "root").run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    report = PrivacyReport.model_validate_json(gateway.files["privacy_report.json"])
    (text,) = report.public_data
    assert (text.name, text.records, text.declaration) == ("cases", 24, DECLARATION)
    assert [marks.public for marks in gateway.sources] == [True, False]
    assert "the public data set cases" in gateway.files["report.html"].decode()
    assert gateway.assignment.plan is not None
    assert report.steps == gateway.assignment.plan.steps  # the plan that was reserved, as it was


def failure(gateway: FakeGateway, root: Path) -> FailureCode | None:
    assert Runner(root).run(gateway.client()) is WorkerExit.REPORTED
    assert not gateway.outcome.succeeded
    assert gateway.charges == {}
    return gateway.outcome.code


def test_private_rows_named_as_public_are_refused(
    base: BaseModelFacts, rows: Path, tmp_path: Path
) -> None:
    """A copy under another name, which the gateway has not seen yet."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(rows.read_bytes())
    gateway = FakeGateway(job(base, rows, public(copy, text_field="text")))
    assert failure(gateway, tmp_path / "root") is FailureCode.SOURCE_REFUSED
    assert any("learn without any privacy" in str(log) for log in gateway.incidents)


def test_what_the_gateway_knows_as_private_is_refused(
    base: BaseModelFacts, rows: Path, cases: Path, tmp_path: Path
) -> None:
    first = FakeGateway(job(base, rows, public(cases, text_field="case")))
    Runner(tmp_path / "first").run(first.client())
    taken = set(first.sources[0].contents)
    gateway = FakeGateway(job(base, rows, public(cases, text_field="case")), taken=taken)
    assert failure(gateway, tmp_path / "root") is FailureCode.SOURCE_REFUSED


def test_it_lies_where_its_declarer_may_register(
    base: BaseModelFacts, rows: Path, cases: Path, tmp_path: Path
) -> None:
    gateway = FakeGateway(job(base, rows, public(cases, prefixes=("/nowhere/",))))
    assert failure(gateway, tmp_path / "root") is FailureCode.SOURCE_REFUSED


def test_a_column_that_is_not_there_is_a_wrong_request(
    base: BaseModelFacts, rows: Path, cases: Path, tmp_path: Path
) -> None:
    gateway = FakeGateway(job(base, rows, public(cases, text_field="nothing")))
    assert failure(gateway, tmp_path / "root") is FailureCode.BAD_CONFIGURATION
