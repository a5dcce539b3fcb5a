"""OpenAI's files and fine-tuning jobs, asked for by OpenAI's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai import OpenAI
from sqlalchemy import Engine

from support import s3_server
from support.gateway import DATASET, MODEL, NAMESPACE, GatewayWorld
from taciturn.data.source import open_rows
from taciturn.server.ledger import statement
from taciturn.wire.datasets import ColumnView
from taciturn.wire.jobs import JobKind

SECRET = "Ms Secret"
TURNS = [{"role": "user", "content": SECRET}, {"role": "assistant", "content": "I see."}]
LINES = b"".join(
    json.dumps({"customer": f"c{number}", "messages": TURNS}).encode() + b"\n"
    for number in range(30)
)
UPLOAD = {"namespace": NAMESPACE, "privacy_unit": "customer", "units": 30}
SUPERVISED: dict[str, Any] = {
    "batch_size": 64,
    "steps": 20,
    "text_field": "context",
    "delta": 1e-6,
    "target_epsilon": 1,
}


@pytest.fixture
def world(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    world = GatewayWorld.for_jobs(lite_engine, tmp_path / "gateway", upload_limit_bytes=20_000)
    (tmp_path / "store").mkdir()
    change = {"sources": [str(tmp_path / "store")]}
    assert world.ask("adam", "PATCH", "/users/olga", change).status_code == 200
    return world


def client(world: GatewayWorld, name: str, base: str = "/openai/v1") -> OpenAI:
    """OpenAI's client, which asks the application without a network and never again."""

    def answer(request: httpx.Request) -> httpx.Response:
        head = {key: value for key, value in request.headers.items() if key != "content-length"}
        content = request.read()
        got = world.client.request(request.method, str(request.url), headers=head, content=content)
        return httpx.Response(got.status_code, headers=dict(got.headers), content=got.content)

    http_client = httpx.Client(transport=httpx.MockTransport(answer))
    return OpenAI(
        api_key=world.tokens[name],
        base_url=f"https://testserver{base}",
        http_client=http_client,
        max_retries=0,
    )


def method(**changes: Any) -> Any:
    terms = {k: v for k, v in {**SUPERVISED, **changes}.items() if v is not None}
    return {"type": "supervised", "supervised": {"hyperparameters": terms}}


def create(world: GatewayWorld, name: str = "paul", **changes: Any) -> Any:
    fields = {"model": MODEL, "training_file": DATASET, "method": method(), **changes}
    return client(world, name).fine_tuning.jobs.create(**fields)


def stored(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.parametrize("base", ["/v1", "/openai/v1"])
def test_datasets_are_files(world: GatewayWorld, base: str) -> None:
    ask = client(world, "paul", base)
    (file,) = ask.files.list(purpose="fine-tune")
    assert (file.id, file.status, file.purpose, file.bytes) == (
        DATASET,
        "processed",
        "fine-tune",
        0,
    )
    assert ask.files.retrieve(DATASET).id == DATASET
    assert not ask.files.list(purpose="batch").data
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask.files.content(DATASET)
    assert caught.value.code == "policy_refused"
    with pytest.raises(openai.NotFoundError):
        client(world, "oscar", base).files.retrieve(DATASET)


def test_an_upload_becomes_a_dataset_in_its_owners_store(
    world: GatewayWorld, tmp_path: Path
) -> None:
    ask = client(world, "olga")
    file = ask.files.create(file=("a.jsonl", LINES), purpose="fine-tune", extra_body=UPLOAD)
    assert file.status == "uploaded"
    (path,) = stored(tmp_path)
    assert path.name == f"{file.id}.jsonl"
    assert path.stat().st_mode & 0o077 == 0
    dataset = world.ask("olga", "GET", f"/datasets/{file.id}").json()
    assert (dataset["unit"], dataset["units"], dataset["source"]) == ("customer", 30, str(path))
    kind = "list<item: struct<role: string, content: string>>"
    columns = (
        ColumnView(name="customer", type="string"),
        ColumnView(name="messages", type=kind),
    )
    services = world.services
    world.gateway.write(lambda connection: services.datasets.probed(connection, file.id, columns))
    assert ask.files.retrieve(file.id).status == "processed"
    job = create(
        world, "olga", training_file=file.id, method=method(text_field=None, batch_size=5, steps=1)
    )
    ask.fine_tuning.jobs.cancel(job.id)
    world.tick()
    assert ask.files.delete(file.id).deleted
    assert stored(tmp_path) == []


def test_an_upload_goes_into_an_object_store_of_its_owner(
    world: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through AWS's own client, where a policy lets the gateway write there alone."""
    with s3_server.running(monkeypatch) as buckets:
        buckets.objects["hospital/"] = b""
        buckets.writable = "hospital/ward/olga/"
        change = {"sources": ["s3://hospital/ward/olga/"]}
        assert world.ask("adam", "PATCH", "/users/olga", change).status_code == 200
        ask = client(world, "olga")
        file = ask.files.create(file=("a.jsonl", LINES), purpose="fine-tune", extra_body=UPLOAD)
        (key,) = buckets.files()
        assert key == f"hospital/ward/olga/taciturn_uploads/{file.id}.jsonl"
        source = world.ask("olga", "GET", f"/datasets/{file.id}").json()["source"]
        assert source == f"s3://{key}"
        rows = [row for batch in open_rows(source).batches for row in batch.to_pylist()]
        assert [row["messages"] for row in rows] == [TURNS] * 30
        half = LINES[: len(LINES) // 2 - 7]
        with pytest.raises(openai.BadRequestError):
            ask.files.create(file=("b.jsonl", half), purpose="fine-tune", extra_body=UPLOAD)
        assert buckets.files() == [key]
        assert not buckets.parts
        assert ask.files.delete(file.id).deleted
        assert not buckets.files()
        buckets.writable = "other/"
        with pytest.raises(openai.InternalServerError) as caught:
            ask.files.create(file=("a.jsonl", LINES), purpose="fine-tune", extra_body=UPLOAD)
        assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"privacy_unit": None}, "privacy_unit"),
        ({"units": None}, "units"),
        ({"namespace": None}, "namespace"),
        ({"units": 0}, "units"),
        ({"expires_after": "1"}, "expires_after"),
        ({"epsilon": 1}, "epsilon"),
        ({"privacy_unit": "patient"}, "file"),
    ],
)
def test_an_upload_without_its_terms_leaves_nothing(
    world: GatewayWorld, tmp_path: Path, changes: dict[str, Any], parameter: str
) -> None:
    body = {name: value for name, value in {**UPLOAD, **changes}.items() if value is not None}
    with pytest.raises(openai.BadRequestError) as caught:
        client(world, "olga").files.create(
            file=("a.jsonl", LINES), purpose="fine-tune", extra_body=body
        )
    assert caught.value.param == parameter
    assert SECRET not in str(caught.value)
    assert stored(tmp_path) == []


def test_one_record_is_a_unit_only_where_the_owner_says_so(world: GatewayWorld) -> None:
    body = {**UPLOAD, "privacy_unit": "one record", "columns": "customer"}
    file = client(world, "olga").files.create(
        file=("a.jsonl", LINES), purpose="fine-tune", extra_body=body
    )
    unit = world.ask("olga", "GET", f"/datasets/{file.id}").json()["unit"]
    assert unit == "md5(CAST(messages AS VARCHAR))"


@pytest.mark.parametrize("broken", [LINES + b'{"messages": "Ms Sec', b"", LINES * 10])
def test_half_a_file_and_too_long_a_file_leave_nothing(
    world: GatewayWorld, tmp_path: Path, broken: bytes
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client(world, "olga").files.create(
            file=("a.jsonl", broken), purpose="fine-tune", extra_body=UPLOAD
        )
    assert caught.value.code == ("too_large" if len(broken) > 20_000 else "invalid")
    assert SECRET not in str(caught.value)
    assert stored(tmp_path) == []
    names = {file.id for file in client(world, "olga").files.list()}
    assert names == {DATASET}


@pytest.mark.parametrize("ends", [True, False])
def test_an_upload_that_breaks_off_leaves_nothing(
    world: GatewayWorld, tmp_path: Path, ends: bool
) -> None:
    """The client goes away in the middle of a line, or ends the body there."""
    fields = {**UPLOAD, "purpose": "fine-tune"}
    request = httpx.Request(
        "POST", "https://testserver/v1/files", data=fields, files={"file": ("a.jsonl", LINES)}
    )
    body = request.read()
    half = body[: len(body) - 200]
    rest = {"type": "http.request", "body": b"", "more_body": False}
    messages = [
        {"type": "http.request", "body": half, "more_body": True},
        rest if ends else {"type": "http.disconnect"},
    ]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answers.append(message)

    head = {**world.headers("olga"), "content-type": request.headers["content-type"]}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "query_string": b"",
        "client": ("testclient", 1),
        "server": ("testserver", 443),
        "headers": [(key.lower().encode(), value.encode()) for key, value in head.items()],
    }
    anyio.run(world.app, scope, receive, send)
    assert answers[0]["status"] == 400
    assert stored(tmp_path) == []
    assert {file.id for file in client(world, "olga").files.list()} == {DATASET}


def test_what_cannot_be_registered_is_removed_again(world: GatewayWorld, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError):
        client(world, "olga").files.create(
            file=("a.jsonl", LINES), purpose="fine-tune", extra_body={**UPLOAD, "namespace": "x"}
        )
    assert stored(tmp_path) == []


def test_only_owners_with_a_store_upload(world: GatewayWorld) -> None:
    for name in ("paul", "ann", "otto"):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client(world, name).files.create(
                file=("a.jsonl", LINES), purpose="fine-tune", extra_body=UPLOAD
            )
        assert caught.value.code == "forbidden"
        assert ("--source" in str(caught.value)) == (name == "otto")


def test_a_job_is_a_fit_of_the_same_service(world: GatewayWorld) -> None:
    job = create(world, suffix="notes", seed=5)
    assert (job.status, job.model, job.training_file, job.seed) == ("queued", MODEL, DATASET, 5)
    assert job.hyperparameters.batch_size == 64
    assert job.fine_tuned_model is None
    own = world.get(f"jobs/{job.id}").json()
    assert own["request"]["target_epsilon"] == 1
    assert own["request"]["name"] == "notes"
    plan = {**own["request"]}
    shown = world.post("plans", plan).json()
    assert own["plan"] == shown["plan"]
    gateway = world.gateway
    used = statement(gateway.engine, gateway.seal_key, NAMESPACE).budget.used
    assert used == pytest.approx(shown["share_of_budget"])
    assert [item.id for item in client(world, "paul").fine_tuning.jobs.list()] == [job.id]


def test_a_job_without_epsilon_is_refused_as_openai_does(world: GatewayWorld) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(world, method=method(target_epsilon=None))
    assert caught.value.param == "method.supervised.hyperparameters.target_epsilon"
    assert caught.value.code == "invalid"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.ConflictError) as caught:
        create(world, method=method(target_epsilon=500, delta=1e-6))
    assert caught.value.code == "budget_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        create(world, training_file="none")
    assert missing.value.param == "training_file"


def test_a_request_stands_for_itself_until_its_job_is_over(world: GatewayWorld) -> None:
    first = create(world)
    assert create(world).id == first.id
    assert create(world, suffix="another").id != first.id
    key = {"Idempotency-Key": "another-key-1"}
    assert create(world, extra_headers=key).id != first.id
    client(world, "paul").fine_tuning.jobs.cancel(first.id)
    retry = {"x-stainless-retry-count": "1"}
    assert create(world, extra_headers=retry).id == first.id
    again = create(world)
    assert again.id != first.id
    assert create(world).id == again.id


def test_whoever_has_no_part_in_a_job_finds_none(world: GatewayWorld) -> None:
    job = create(world)
    for name in ("petra", "oscar"):
        jobs = client(world, name).fine_tuning.jobs
        assert jobs.list().data == []
        for ask in (jobs.retrieve, jobs.list_events, jobs.checkpoints.list, jobs.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(job.id)
        with pytest.raises(openai.NotFoundError):
            create(world, name)
    with pytest.raises(openai.PermissionDeniedError):
        client(world, "ann").fine_tuning.jobs.cancel(job.id)
    assert client(world, "ann").fine_tuning.jobs.retrieve(job.id).status == "queued"
    sample = world.add_job(JobKind.SAMPLE)
    with pytest.raises(openai.NotFoundError):
        client(world, "paul").fine_tuning.jobs.retrieve(sample)


def test_a_job_that_waits_for_approvers_is_being_validated(world: GatewayWorld) -> None:
    job = create(world, method=method(target_epsilon="unlimited", delta=None))
    assert job.status == "validating_files"
    more = job.to_dict()["taciturn"]
    assert isinstance(more, dict)
    assert more["state"] == "awaiting_approval"
    assert more["approval"]
    events = client(world, "paul").fine_tuning.jobs.list_events(job.id).data
    assert any("Two approvers" in event.message for event in events)
    assert client(world, "paul").fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_events_come_by_pages_newest_first_and_say_nothing_private(world: GatewayWorld) -> None:
    job = create(world)
    world.tick()
    worker = world.worker(job.id)
    assert worker.take().status_code == 200
    world.clock.forward(10)
    jobs = client(world, "paul").fine_tuning.jobs
    events = list(jobs.list_events(job.id, limit=2))
    assert len(events) > 2
    assert [event.id for event in events] == [
        f"ftevent-{job.id}-{number}" for number in range(len(events), 0, -1)
    ]
    assert {event.level for event in events} == {"info"}
    page = jobs.list_events(job.id, limit=2)
    assert page.has_more
    (after, *_) = jobs.list_events(job.id, after=page.data[-1].id, limit=2).data
    assert after.id == events[2].id
    for wrong in ("ftevent-x-1", "1", f"ftevent-{job.id}-x"):
        with pytest.raises(openai.BadRequestError) as caught:
            jobs.list_events(job.id, after=wrong)
        assert caught.value.param == "after"
    assert jobs.retrieve(job.id).status == "running"
    assert jobs.checkpoints.list(job.id).data == []


def test_jobs_come_by_pages(world: GatewayWorld) -> None:
    made = [create(world, suffix=f"model {number}").id for number in range(3)]
    pages = client(world, "paul").fine_tuning.jobs.list(limit=1)
    assert pages.has_more
    assert sorted(job.id for job in pages) == sorted(made)
    for ask in (
        lambda jobs: jobs.pause(made[0]),
        lambda jobs: jobs.resume(made[0]),
        lambda jobs: jobs.list(metadata={"team": "blue"}),
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client(world, "paul").fine_tuning.jobs)


def test_what_is_read_in_openais_words_is_disclosed(world: GatewayWorld) -> None:
    """The owner sees who has read what of the data, by whatever address."""
    job = create(world)
    ask = client(world, "paul")
    ask.files.retrieve(DATASET)
    ask.fine_tuning.jobs.retrieve(job.id)
    ask.fine_tuning.jobs.list_events(job.id)
    client(world, "paul", "/v1").fine_tuning.jobs.checkpoints.list(job.id)
    items = world.ask("olga", "GET", f"/datasets/{DATASET}/disclosures").json()["items"]
    reads = [(item["kind"], item["job"], item["to"]) for item in items if item["step"] == "read"]
    assert reads == [
        ("job", job.id, "user:paul"),
        ("events", job.id, "user:paul"),
        ("job", job.id, "user:paul"),
        ("terms", None, "user:paul"),
    ]
