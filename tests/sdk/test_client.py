"""A practitioner's and an owner's day: datasets, jobs, results, terms; and what each one says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from support.fake_gateway import EXPORTED, FOUND, FakeApi, dataset, exported
from taciturn.errors import (
    AdapterError,
    CertificateError,
    ConflictError,
    DataError,
    InvalidRequestError,
    JobFailedError,
    ModelError,
    SpecError,
)
from taciturn.llm import LLM
from taciturn.notebook.frame import PolicyFrame, with_policy
from taciturn.sdk.client import Client
from taciturn.sdk.evaluation import RemoteEvaluation
from taciturn.sdk.job import Job
from taciturn.sdk.model import RemoteModel
from taciturn.sdk.requests import public_texts
from taciturn.sdk.results import read_result
from taciturn.wire.datasets import DatasetState, StatedColumn
from taciturn.wire.events import FAILURES, FailureCode, NodeEvent, NumberedEvent
from taciturn.wire.jobs import Failure, JobKind, JobState, JobView, RemoteFit
from taciturn.wire.machines import MachineUse

BASE = "taciturn/tiny-medical"
EVIL = "<script>alert('x')</script>"


def test_preview_is_marked_in_every_representation(client: Client) -> None:
    data = client.dataset("phee")
    frame = data.preview()
    assert isinstance(frame, PolicyFrame)
    assert frame.attrs["policy"] == "mock (invented rows)"
    for text in (repr(frame), frame._repr_html_(), repr(data), data._repr_html_()):
        assert "mock (invented rows)" in text
    assert "25.0% spent" in repr(data)
    assert frame.head(1).attrs["policy"] == "mock (invented rows)"


def test_select_is_tried_at_once(client: Client) -> None:
    data = client.dataset("phee")
    chosen = data.select("upper(text) AS text")
    assert list(chosen.preview().columns) == ["text"]
    assert data.ref.select is None
    with pytest.raises(InvalidRequestError, match="aggregate"):
        data.select("count(*)")
    with pytest.raises(SpecError, match="already"):
        chosen.select("text")


def test_split_names_both_sides(client: Client) -> None:
    train, test = client.dataset("phee").split(test=0.2)
    assert train.ref.part is not None
    assert test.ref.part is not None
    assert (train.ref.part.side, test.ref.part.side) == ("train", "test")
    assert train.ref.part.test_share == test.ref.part.test_share == 0.2
    with pytest.raises(SpecError, match="already"):
        train.split()
    with pytest.raises(SpecError, match="test_share"):
        client.dataset("phee").split(test=1.5)


def test_plan_says_whether_there_is_room(client: Client) -> None:
    quote = client.dataset("phee").plan(BASE, target_epsilon=3)
    assert quote.plan.n_units == 1100
    assert "there is room" in repr(quote)
    assert "worth: " in repr(quote)
    assert "of what an ordinary fit would learn" in repr(quote)
    assert "2 times the time: batch" in repr(quote)
    assert quote.policy in quote._repr_html_()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"privacy_unit": "id"}, "the dataset's own"),
        ({"select": "id"}, "data.select"),
        ({"device": "cuda"}, "not yours to choose"),
        ({"public_data": pd.DataFrame({"text": ["A cough."]})}, "registered data and nothing"),
        ({"public_data": "/data/cases.jsonl"}, "registered data and nothing"),
        ({"target_epsilom": 3}, "did you mean"),
        ({"target_epsilon": -1.0}, "must lie in"),
    ],
)
def test_what_cannot_be_asked_is_refused_here(
    fake: FakeApi, client: Client, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        client.dataset("phee").fit(BASE, **fields)  # type: ignore[arg-type]
    assert fake.jobs == {}


def test_public_data_are_named_declared_and_removed(fake: FakeApi, client: Client) -> None:
    made = client.add_public_dataset(
        "cases", "s3://open/cases.jsonl", licence="CC BY 4.0", origin="case reports of a journal"
    )
    assert [view.name for view in client.public_datasets()] == ["cases"]
    assert client.public_dataset("cases") == made
    data = client.dataset("phee")
    quote = data.plan(BASE, target_epsilon=3, public_data="gateway:cases")
    assert "public data, not covered: cases (CC BY 4.0; case reports" in repr(quote)
    assert data.fit(BASE, target_epsilon=3, public_data="cases").view.request["public_data"] == (
        "cases"
    )
    client.remove_public_dataset("cases")
    assert list(client.public_datasets()) == []


def test_llm_fits_where_the_data_is(fake: FakeApi, client: Client, tmp_path: Path) -> None:
    train, _ = client.dataset("phee").select("text").split()
    model = LLM(BASE)
    job = model.fit(train, target_epsilon=3, text_field="text", wait=False)
    assert isinstance(job, Job)
    (view,) = fake.jobs.values()
    asked = RemoteFit.model_validate(view.request)
    assert (asked.model, asked.data.select, asked.text_field) == (BASE, "text", "text")
    frame = model.sample(["The patient"], max_new_tokens=5)
    assert list(frame.columns) == ["prompt", "text", "policy"]
    assert frame.attrs["policy"] == model.policy
    assert model.privacy is not None
    assert model.privacy.epsilon == 3
    folder = model.save(tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"privacy_report.json", "README.md"}
    here = LLM(str(folder))
    assert here.privacy == model.privacy
    with pytest.raises(AdapterError, match="not an empty folder"):
        model.download(folder)
    with pytest.raises(ModelError, match="download it"):
        model.log_probability("a", "b")
    with pytest.raises(ModelError, match="already in use"):
        model.fit(train, target_epsilon=3)
    with pytest.raises(CertificateError, match="no certificate"):
        model.certificate()


def test_llm_refuses_what_is_for_this_machine(client: Client) -> None:
    data = client.dataset("phee")
    with pytest.raises(SpecError, match="output is for data on this machine"):
        LLM(BASE).fit(data, output="x", target_epsilon=3)
    with pytest.raises(SpecError, match="for datasets of a gateway"):
        LLM(BASE).fit(["text"], wait=False, target_epsilon=3)
    with pytest.raises(SpecError, match="behind a gateway"):
        LLM(BASE).evaluate(data)
    with pytest.raises(SpecError, match="dtype"):
        LLM("gateway:mod_1", dtype="float32")


def test_llm_plans_where_the_data_is(client: Client) -> None:
    assert LLM(BASE).plan(client.dataset("phee"), target_epsilon=3).steps == 4


def test_a_failed_fit_says_why_and_leaves_the_model_usable(fake: FakeApi, client: Client) -> None:
    fake.outcome = JobState.FAILED
    model = LLM(BASE)
    with pytest.raises(JobFailedError, match="ask the owner") as caught:
        model.fit(client.dataset("phee"), target_epsilon=3)
    assert (caught.value.code, caught.value.incident) == ("data_unreadable", "inc_1")
    fake.outcome = JobState.SUCCEEDED
    assert model.fit(client.dataset("phee"), target_epsilon=3) is model


def test_unlimited_says_so(client: Client) -> None:
    job = client.dataset("phee").fit(BASE, target_epsilon="unlimited")
    assert "no guarantee (approved by ada, bob)" in repr(job)
    assert "t-none" in job._repr_html_()


def test_a_job_is_found_again_and_cancelled(client: Client) -> None:
    made = client.dataset("phee").fit(BASE, target_epsilon=3)
    job = client.job(made.id)
    assert job.status is JobState.QUEUED
    assert job.cancel().view.state is JobState.CANCELLED
    with pytest.raises(JobFailedError, match="was cancelled"):
        job.result()
    assert [each.id for each in client.jobs()] == [made.id]


def test_machines_are_told_after_the_end(client: Client, fake: FakeApi) -> None:
    """The stream of events has ended by then; the job's page of events has not."""
    job = client.dataset("phee").fit(BASE, target_epsilon=3)
    list(job.events())
    assert len(job.machines()) == 0
    use = MachineUse(
        node="l4-1", ended="released", node_seconds=360, cost=0.36, currency="USD", at_most=True
    )
    said = (
        NodeEvent(code="releasing", text="the worker is done"),
        NodeEvent(code="node.released", text="machine l4-1 is gone", use=use),
    )
    last = fake.events()[-1]
    fake.after_the_end = [
        NumberedEvent(sequence=last.sequence + i, at=last.at, event=event)
        for i, event in enumerate(said, start=1)
    ]
    assert list(job.machines()) == [use]
    assert "360" in repr(job.machines())


def test_ctrl_c_leaves_the_job_and_says_the_way_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.dataset("phee").fit(BASE, target_epsilon=3)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"client.job\\('{job.id}'\\)"):
        job.wait()


def test_giving_up_waiting_is_no_failure(client: Client) -> None:
    job = client.dataset("phee").fit(BASE, target_epsilon=3)
    with pytest.raises(TimeoutError, match="goes on"):
        job.wait(timeout_s=-1)


def test_evaluate_on_public_texts(fake: FakeApi, client: Client, tmp_path: Path) -> None:
    model = client.model("mod_00000000000000000001")
    path = tmp_path / "public.JSONL"
    path.write_text(json.dumps({"note": "a"}) + "\n")
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text(
        '\ufeff{"note": "007"}\n\n{"note": "2020-01-01\u2028"}\r\n', encoding="utf-8"
    )
    assert public_texts(numbers, "note") == ["007", "2020-01-01\u2028"]
    numbers.write_text('{"note": "secret"')
    with pytest.raises(DataError, match="line 1 is not a JSON object") as caught:
        public_texts(numbers, "note")
    assert "secret" not in str(caught.value)
    frame = pd.DataFrame({"note": ["a"]})
    given: list[tuple[object, str | None]] = [(["a"], None), (frame, "note"), (path, "note")]
    for data, field in [*given, (frame["note"], None)]:
        found = model.evaluate(data, text_field=field)
        assert isinstance(found, RemoteEvaluation)
        assert found.base.perplexity == pytest.approx(4.4817, rel=1e-4)
        assert "50.00% ± 1.00%" in repr(found)
    assert {tuple(job.request["public_texts"]) for job in fake.jobs.values()} == {("a",)}
    with pytest.raises(DataError, match="no column"):
        model.evaluate(pd.DataFrame({"x": ["a"]}))
    with pytest.raises(DataError, match="cannot be sent"):
        model.evaluate(object())
    with pytest.raises(SpecError, match="stay here"):
        model.evaluate(["a"], target_epsilon=1)


def test_evaluate_on_private_rows_is_asked_for_by_name(fake: FakeApi, client: Client) -> None:
    _, test = client.dataset("phee").split()
    model = client.model("mod_00000000000000000001")
    with pytest.raises(SpecError, match="target_epsilon"):
        model.evaluate(test)
    model.evaluate(test, target_epsilon=0.5)
    (job,) = fake.jobs.values()
    assert job.request["data"]["part"]["side"] == "test"


def test_owner(fake: FakeApi, client: Client) -> None:
    added = client.add_dataset(
        "notes",
        "s3://hospital/notes.parquet",
        unit="patient_id",
        namespace="patients",
        units=1100,
        epsilon=8,
        delta=1e-6,
        mock=[{"id": "1"}],
    )
    assert added.wait().name == "notes"
    with pytest.raises(SpecError, match="units"):
        client.add_dataset("n", "s", unit="u", namespace="p", units=0)
    client.grant("patients", "user:eve", epsilon=2, delta=1e-7)
    assert [each.holder for each in client.grants("patients")] == ["user:eve"]
    client.revoke("patients", "user:eve")
    assert len(client.grants("patients")) == 0
    changed = client.set_policy("patients", approvers=("user:ada", "user:bob"), job_epsilon=4)
    assert (changed.version, changed.budget.epsilon) == (2, 8)
    with pytest.raises(SpecError, match="epsilom"):
        client.set_policy("patients", epsilom=1)
    (waiting,) = client.approvals()
    client.approve(waiting.id)
    client.reject(waiting.id, "not this one")
    assert fake.decisions == [(waiting.id, "approve"), (waiting.id, "reject")]
    assert client.incident("inc_1") == "Traceback: a row"


def test_an_owner_confirms_what_was_found(fake: FakeApi, client: Client) -> None:
    fake.found = FOUND
    fields = {"unit": "md5(id)", "namespace": "patients", "units": 1100}
    added = client.add_dataset("notes", "/data/notes.csv", **fields).wait()
    assert added.view.state is DatasetState.UNCONFIRMED
    assert "'Dupont': string" in repr(added)
    assert "column 1, '17', is a number" in repr(added)
    assert "Dupont" in added._repr_html_()
    with pytest.raises(ConflictError, match="not the ones"):
        added.confirm(["id", "name"])
    assert added.confirm(["id", "name"], header=False).view.state is DatasetState.READY
    assert fake.stated["notes"].header is False
    fake.datasets["notes"] = added.view
    confirmed = added.confirm()
    assert confirmed.view.state is DatasetState.READY
    assert fake.stated["notes"].columns == (
        StatedColumn(name="17", type="string"), StatedColumn(name="Dupont", type="string")
    )  # fmt: skip
    with pytest.raises(SpecError, match="nothing of its columns"):
        confirmed.confirm()
    stated = client.add_dataset("b", "/b.csv", columns=["17", "Dupont"], **fields)
    assert stated.wait().view.state is DatasetState.READY


def test_a_dataset_that_cannot_be_used(fake: FakeApi, client: Client) -> None:
    fake.datasets["phee"] = dataset("phee").model_copy(update={"state": DatasetState.REFUSED})
    with pytest.raises(ConflictError, match="cannot be used: a worker could not"):
        client.dataset("phee").wait()


def test_a_dataset_that_no_worker_has_seen_is_not_said_to_be_unreadable(
    fake: FakeApi, client: Client
) -> None:
    fake.datasets["phee"] = dataset("phee").model_copy(update={"state": DatasetState.REFUSED})
    failure = Failure(code=FailureCode.OUTAGE, text=FAILURES[FailureCode.OUTAGE])
    then = datetime(2026, 1, 1, tzinfo=UTC)
    fake.jobs["job_0000000000000001"] = JobView(
        id="job_0000000000000001", kind=JobKind.PROBE, state=JobState.FAILED, requester="ada",
        namespace="patients", dataset="phee", model=None, request={}, failure=failure,
        policy=dataset("phee").policy, created_at=then, updated_at=then,
    )  # fmt: skip
    with pytest.raises(ConflictError, match="cluster of the workers did not answer"):
        client.dataset("phee").wait()


def test_administrator_and_auditor(client: Client) -> None:
    made = client.admin.add_user("eve", ["practitioner"])
    assert made.name == "eve"
    assert client.admin.password_link("eve").url.endswith("/v1/password#tac_link")
    assert client.admin.add_token("ci").token == "tac_secret"
    assert next(client.auditor.audit_log())["actor"] == "user:ada"
    assert client.admin.retention().incident_days == 30


def test_a_password_is_changed_and_quoted_nowhere(fake: FakeApi, client: Client) -> None:
    client.change_password("correct horse battery", "another horse battery")
    assert fake.passwords == ["another horse battery"]
    with pytest.raises(SpecError, match="new: give 12 characters at least") as caught:
        client.change_password("correct horse battery", "short one")
    assert "short one" not in str(caught.value)
    assert fake.passwords == ["another horse battery"]


def test_exports_of_the_audit_log_are_checked(
    fake: FakeApi, client: Client, tmp_path: Path
) -> None:
    first = exported(1, "0" * 64)
    fake.exports = [first, exported(2, first.digest)]
    assert [export.id for export in client.auditor.exports()] == [1, 2]
    assert client.auditor.download_export(first, tmp_path / "a").read_bytes() == EXPORTED
    with pytest.raises(DataError, match="not the one"):
        client.auditor.download_export(
            first.model_copy(update={"sha256": "0" * 64}), tmp_path / "b"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    changed = first.model_copy(update={"entries": 2})
    for spoiled in ([fake.exports[1]], [changed], [first, exported(2, "1" * 64)]):
        fake.exports = spoiled
        with pytest.raises(DataError, match="not chained"):
            list(client.auditor.exports())


def test_every_value_in_html_is_escaped(fake: FakeApi, client: Client) -> None:
    fake.datasets["phee"] = dataset("phee", EVIL)
    data = client.dataset("phee")
    evil = data.view.model_copy(update={"name": EVIL, "owner": EVIL, "unit": EVIL})
    named = replace(data, view=evil, selected=data._preview())
    model = client.model("mod_00000000000000000001")
    view = model.view.model_copy(update={"base_model": EVIL, "name": EVIL, "owner": EVIL})
    job = data.fit(BASE, target_epsilon=3)
    strange = job.view.model_copy(update={"id": EVIL, "requester": EVIL})
    frame = with_policy(pd.DataFrame({EVIL: [EVIL]}), EVIL)
    shown = [
        named._repr_html_(),
        RemoteModel(model._transport, view, read_result)._repr_html_(),
        Job(job._transport, strange, read_result)._repr_html_(),
        client.list_datasets()._repr_html_(),
        frame._repr_html_(),
    ]
    for html in shown:
        assert html is not None
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert "http" not in html.replace(EVIL, "")


def test_closing(client: Client) -> None:
    with client as same:
        assert same.whoami().name == "ada"
