"""OpenAI's own client against the gateway, over HTTP, with a worker that speaks the protocol."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from openai import OpenAI
from sqlalchemy import Engine, insert, select, update

from support import released_files
from support.gateway import NAMESPACE, GatewayWorld
from taciturn.server.app import create_app
from taciturn.server.identity.principal import Principal
from taciturn.server.inference.completions import Completions
from taciturn.server.schema.tables import base_models, jobs, models
from taciturn.server.services import Services
from taciturn.wire.jobs import Failure, JobKind, JobState, JobView, RemoteSample
from taciturn.wire.values import PolicyLine
from taciturn.wire.worker import LEASE_HEADER, NextJob

POLICY = PolicyLine(kind="DP", text="DP (epsilon=3, delta=1e-06, unit=Patientin·id)")
WORDS = ["Once", " upon", " a", " time", ".\n\nUser:", " never"]


@dataclass
class FakeJobs:
    """Takes sample jobs, and has a worker in a thread do them."""

    world: GatewayWorld
    url: str = ""
    fails: str | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    asked: list[RemoteSample] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def submit(self, caller: Principal, asked: RemoteSample, key: str | None) -> JobView:
        assert key is not None
        self.asked.append(asked)
        job = self.world.add_job(
            JobKind.SAMPLE,
            model_id=asked.model,
            request=asked.model_dump(mode="json"),
            policy=POLICY,
        )
        if not self.fails:
            headers = self.world.worker_headers(job)
            threading.Thread(target=self.work, args=(job, asked, headers), daemon=True).start()
        return self.view(caller, job)

    def view(self, caller: Principal, job_id: str) -> JobView:
        wanted = select(jobs).where(jobs.c.id == job_id)
        row = self.world.gateway.read(lambda connection: connection.execute(wanted).one())
        failure = Failure(code=self.fails, text="memory ran out") if self.fails else None
        return JobView(
            id=job_id,
            kind=JobKind.SAMPLE,
            state=JobState.FAILED if self.fails else row.state,
            requester=caller.name,
            namespace=NAMESPACE,
            dataset=None,
            model=row.model_id,
            request={},
            policy=POLICY,
            failure=failure,
            created_at=self.world.clock(),
            updated_at=self.world.clock(),
        )

    def cancel(self, caller: Principal, job_id: str) -> JobView:
        self.cancelled.append(job_id)
        return self.view(caller, job_id)

    def work(self, job: str, asked: RemoteSample, headers: dict[str, str]) -> None:
        """What a worker does."""
        with httpx.Client(base_url=f"{self.url}/v1/worker/jobs/{job}", headers=headers) as http:
            if self.hold.is_set():
                return
            text, offset = "".join(WORDS), 0
            for word in WORDS if asked.stream else []:
                chunk = {"text": word, "offset": offset}
                for _ in range(2):  # it repeats itself
                    http.post("/text", json=chunk).raise_for_status()
                offset += len(word)
            repeated = [prompt for prompt in asked.prompts for _ in range(asked.n)]
            if not asked.writes:
                text = ""
            data = released_files.samples(*((prompt, text) for prompt in repeated))
            if asked.logprobs is not None:
                data = scored(data, asked)
            http.put("/files/samples.jsonl", content=data).raise_for_status()
            if asked.stream:
                last = {"text": "", "last": True, "finish_reason": "length"}
                http.post("/text", json=last).raise_for_status()
            self.world.set_job_state(job, JobState.SUCCEEDED)


def scored(data: bytes, asked: RemoteSample) -> bytes:
    """Lines with a score for each word, and an end."""

    def scores(words: list[str]) -> list[dict[str, Any]]:
        top = [["a", -0.5], ["b", -1.5]][: asked.logprobs]
        return [{"text": word, "log_probability": -1.25, "likeliest": top} for word in words]

    lines = []
    for row in map(json.loads, data.splitlines()):
        row["scores"] = scores(WORDS if row["text"] else [])
        row["scores"] += [{"text": "<end>", "special": True, "log_probability": -2.0}]
        if asked.echo:
            row["prompt_scores"] = scores([row["prompt"]])
            row["prompt_scores"][0]["log_probability"] = None
        lines.append(json.dumps(row).encode() + b"\n")
    return b"".join(lines)


@pytest.fixture(scope="module")
def fake_jobs(
    open_copy: Callable[[Path], Engine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeJobs]:
    folder = tmp_path_factory.mktemp("gateway")
    engine = open_copy(folder)
    found = FakeJobs(GatewayWorld.open(engine, folder, idle_worker_s=2).populate())
    app = create_app(found.world.gateway)
    services: Services = app.state.services
    completions = Completions(found, services.results, services.text_streams)
    app.state.services = replace(services, completions=completions)
    # Without what goes on besides requests: no job is dispatched but by FakeJobs.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    found.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield found
    server.should_exit = True
    thread.join(60)
    engine.dispose()


@pytest.fixture(scope="module")
def model(fake_jobs: FakeJobs) -> str:
    """A fitted model of paul's."""
    job = fake_jobs.world.add_job(JobKind.FIT, state=JobState.SUCCEEDED, policy=POLICY)
    row = {
        "id": "model_1",
        "job_id": job,
        "owner_id": fake_jobs.world.users["paul"],
        "namespace": NAMESPACE,
        "base_model": "taciturn/tiny-medical",
        "report": "{}",
        "policy": POLICY.model_dump_json(),
        "created_at_ms": fake_jobs.world.gateway.now_ms(),
    }
    fake_jobs.world.gateway.write(lambda connection: connection.execute(insert(models).values(row)))
    return "model_1"


@pytest.fixture(params=["/v1", "/openai/v1"])
def client(request: pytest.FixtureRequest, fake_jobs: FakeJobs) -> OpenAI:
    fake_jobs.fails = None
    url = f"{fake_jobs.url}{request.param}"
    return OpenAI(base_url=url, api_key=fake_jobs.world.tokens["paul"], max_retries=0)


def test_models(client: OpenAI, model: str) -> None:
    (found,) = client.models.list()
    assert (found.id, found.object, found.owned_by) == (model, "model", "paul")
    assert client.models.retrieve(model).id == model


def test_completions(client: OpenAI, fake_jobs: FakeJobs, model: str) -> None:
    answer = client.completions.with_raw_response.create(
        model=model, prompt=["A", "B"], n=2, max_tokens=7, temperature=0.5, top_p=0.9, seed=3
    )
    line = "DP (epsilon=3, delta=1e-06, unit=Patientin%C2%B7id)"
    assert answer.headers["Taciturn-Policy"] == line
    found = answer.parse()
    text = "".join(WORDS)
    assert [choice.text for choice in found.choices] == [text] * 4
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (6, 4 * len(text.split()))
    assert found.model_extra is not None
    assert found.model_extra["taciturn"]["policy"] == POLICY.model_dump()
    asked = fake_jobs.asked[-1]
    assert (asked.prompts, asked.n, asked.max_new_tokens) == (("A", "B"), 2, 7)
    assert (asked.temperature, asked.top_p, asked.seed, asked.stream) == (0.5, 0.9, 3, False)


def test_log_probabilities_of_a_completion(client: OpenAI, fake_jobs: FakeJobs, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["Ay", "B"], logprobs=2, echo=True)
    asked = fake_jobs.asked[-1]
    assert (asked.logprobs, asked.echo, asked.base) == (2, True, False)
    choice = answer.choices[0]
    assert choice.text == "Ay" + "".join(WORDS)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["Ay", *WORDS, "<end>"]
    assert choice.logprobs.token_logprobs == [None, *[-1.25] * len(WORDS), -2.0]
    offsets = choice.logprobs.text_offset
    assert offsets is not None
    for token, offset in zip(["Ay", *WORDS], offsets, strict=False):
        assert choice.text[offset:].startswith(token)
    assert choice.logprobs.top_logprobs is not None
    assert choice.logprobs.top_logprobs[1] == {"a": -0.5, "b": -1.5}


def test_a_stop_cuts_the_scores_too(client: OpenAI, model: str) -> None:
    (choice,) = client.completions.create(
        model=model, prompt="A", stop=["time"], logprobs=0
    ).choices
    assert choice.logprobs is not None
    assert (choice.text, choice.logprobs.tokens) == ("Once upon a ", WORDS[:3])
    assert choice.logprobs.top_logprobs is None


def test_a_given_text_is_scored_by_a_models_base(
    client: OpenAI, fake_jobs: FakeJobs, model: str
) -> None:
    answer = client.completions.create(
        model=f"{model}:base", prompt="A given text", max_tokens=0, echo=True, logprobs=0
    )
    asked = fake_jobs.asked[-1]
    assert (asked.model, asked.base, asked.writes) == (model, True, False)
    assert answer.model == f"{model}:base"
    assert answer.choices[0].text == "A given text"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == [None, -2.0]
    for who in ("petra", "ann"):
        other = client.with_options(api_key=fake_jobs.world.tokens[who])
        with pytest.raises((openai.NotFoundError, openai.PermissionDeniedError)):
            other.completions.create(model=f"{model}:base", prompt="A", logprobs=0)


def test_log_probabilities_of_a_chat(client: OpenAI, fake_jobs: FakeJobs, model: str) -> None:
    said: Any = [{"role": "user", "content": "Hello?"}]
    answer = client.chat.completions.create(
        model=model, messages=said, logprobs=True, top_logprobs=1
    )
    assert fake_jobs.asked[-1].logprobs == 1
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == WORDS[:4]
    assert (logprobs.content[0].logprob, logprobs.content[0].bytes) == (-1.25, list(b"Once"))
    assert logprobs.content[0].top_logprobs[0].token == "a"


def test_a_stop_ends_the_text(client: OpenAI, model: str) -> None:
    found = client.completions.create(model=model, prompt="A", stop=["time", "never"])
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("Once upon a ", "stop")


def test_streamed_completions(client: OpenAI, model: str) -> None:
    chunks = list(
        client.completions.create(
            model=model, prompt="A", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "".join(WORDS)
    assert len(chunks) > 4
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("".join(WORDS).split())
    assert all(chunk.model_extra and chunk.model_extra["taciturn"] for chunk in chunks)


def test_chat(client: OpenAI, fake_jobs: FakeJobs, model: str) -> None:
    """A model without a template is asked in plain words, and does not answer for the user."""
    talk: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello?"}]},
    ]
    found = client.chat.completions.create(model=model, messages=talk)
    assert fake_jobs.asked[-1].prompts == ("System: Be brief.\n\nUser: Hello?\n\nAssistant:",)
    choice = found.choices[0]
    assert choice.message.content == "Once upon a time."
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")


def test_streamed_chat(client: OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello?"}], stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Once upon a time."
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "stream": True}, "stream"),
        ({"logprobs": 1, "n": 128, "extra_body": {"prompt": ["A", "B"]}}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "stream": True}, "echo"),
        ({"echo": True, "max_tokens": 0}, "max_tokens"),
        ({"suffix": "end"}, "suffix"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": True, "n": 2}, "stream"),
        ({"extra_body": {"tempersture": 1}}, "tempersture"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: OpenAI, fake_jobs: FakeJobs, model: str, more: dict[str, Any], named: str
) -> None:
    before = len(fake_jobs.asked)
    with pytest.raises(openai.BadRequestError, match=named) as refused:
        client.completions.create(model=model, prompt="A", **more)
    assert (refused.value.type, refused.value.code) == ("invalid_request_error", "invalid")
    assert len(fake_jobs.asked) == before


def test_what_asks_for_nothing_is_let_pass(client: OpenAI, model: str) -> None:
    client.completions.create(
        model=model, prompt="A", best_of=1, echo=False, frequency_penalty=0, user="me"
    )
    client.completions.create(model=model, prompt="A", extra_body={"logprobs": False})


def test_errors_are_openais(client: OpenAI, fake_jobs: FakeJobs, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="model_2", prompt="A")
    for who, error in (
        ("petra", openai.NotFoundError),
        ("oscar", openai.NotFoundError),
        ("ann", openai.PermissionDeniedError),
        ("adam", openai.PermissionDeniedError),
    ):
        other = client.with_options(api_key=fake_jobs.world.tokens[who])
        with pytest.raises(error):
            other.completions.create(model=model, prompt="A")
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="nobody").completions.create(model=model, prompt="A")
    assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("bad_configuration", openai.BadRequestError),
        ("resources", openai.BadRequestError),
        ("lost", openai.InternalServerError),
    ],
)
def test_only_a_failure_that_may_pass_is_one_that_clients_repeat(
    client: OpenAI, fake_jobs: FakeJobs, model: str, code: str, error: type[openai.APIStatusError]
) -> None:
    fake_jobs.fails = code
    before = len(fake_jobs.asked)
    with pytest.raises(error, match="memory ran out"):
        client.with_options(max_retries=1).completions.create(model=model, prompt="A")
    assert len(fake_jobs.asked) - before == (2 if error is openai.InternalServerError else 1)
    with pytest.raises(openai.APIError, match="memory ran out"):
        list(client.completions.create(model=model, prompt="A", stream=True))


def test_a_default_fits_the_model(client: OpenAI, fake_jobs: FakeJobs, model: str) -> None:
    said: Any = [{"role": "user", "content": "Hello?"}]
    client.chat.completions.create(model=model, messages=said)
    assert fake_jobs.asked[-1].max_new_tokens == 256
    _set_context_length(fake_jobs.world, 100)
    try:
        client.chat.completions.create(model=model, messages=said)
        assert fake_jobs.asked[-1].max_new_tokens == 50
        client.completions.create(model=model, prompt="A")
        assert fake_jobs.asked[-1].max_new_tokens == 16
    finally:
        _set_context_length(fake_jobs.world, 512)


def _set_context_length(world: GatewayWorld, tokens: int) -> None:
    change = update(base_models).values(context_length=tokens)
    world.gateway.write(lambda connection: connection.execute(change))


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_cancels(
    client: OpenAI, fake_jobs: FakeJobs, model: str, stream: bool
) -> None:
    fake_jobs.hold.set()
    fake_jobs.cancelled.clear()
    try:
        impatient = client.with_options(timeout=httpx.Timeout(5, read=0.3))
        create: Any = impatient.completions.create
        with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
            list(create(model=model, prompt="A", stream=stream))
        deadline = time.monotonic() + 60
        while not fake_jobs.cancelled and time.monotonic() < deadline:
            time.sleep(0.02)
        assert fake_jobs.cancelled
    finally:
        fake_jobs.hold.clear()


def test_a_worker_gets_its_models_files_and_another_job(fake_jobs: FakeJobs, model: str) -> None:
    """The files of its own model only; and the next job with a token of its own."""
    world = fake_jobs.world
    job = world.add_job(JobKind.SAMPLE, model_id=model)
    headers = world.worker_headers(job)
    wanted = select(models.c.job_id).where(models.c.id == model)
    fit = world.gateway.read(lambda connection: connection.scalar(wanted))
    store = httpx.get(f"{fake_jobs.url}/v1/worker/models/{model}/files/none", headers=headers)
    assert store.json()["code"] == "not_found"
    wrong_model = httpx.get(f"{fake_jobs.url}/v1/worker/models/model_2/files/none", headers=headers)
    assert "model_2" in wrong_model.json()["detail"]
    assert fit is not None

    def ask() -> httpx.Response:
        return httpx.post(f"{fake_jobs.url}/v1/worker/jobs/{job}/next", headers=headers, timeout=10)

    assert ask().json()["code"] == "fenced"  # it still has something to do
    world.set_job_state(job, JobState.SUCCEEDED)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(ask()))
    waiting.start()
    other = world.add_job(JobKind.SAMPLE, state=JobState.QUEUED, model_id=model)
    waiting.join(60)
    following = NextJob.model_validate_json(answers[0].content)
    assert following.job == other
    row = world.gateway.rows(select(jobs).where(jobs.c.id == other))[0]
    assert (row.state, row.attempt) == (JobState.PROVISIONING, 2)
    assert row.worker_token.removeprefix("tok_") in str(following.token)
    wrong = {**headers, LEASE_HEADER: "7"}
    assert (
        httpx.post(f"{fake_jobs.url}/v1/worker/jobs/{job}/next", headers=wrong).status_code == 409
    )
