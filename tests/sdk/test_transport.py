"""A lost answer never spends twice; refusals say why; credentials go where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import taciturn
from support.fake_gateway import TOKEN, URL, FakeApi
from taciturn.errors import (
    AuthenticationError,
    ConflictError,
    GatewayError,
    InvalidRequestError,
    NotThereError,
    PermissionDeniedError,
    RemoteBudgetError,
    TooManyRequestsError,
    UnavailableError,
)
from taciturn.sdk.client import Client
from taciturn.sdk.credentials import (
    Credentials,
    credentials_path,
    find_credentials,
    forget_credentials,
    keep_credentials,
)
from taciturn.sdk.job import Job
from taciturn.sdk.results import read_result
from taciturn.sdk.stream import messages
from taciturn.sdk.transport import Patience, Transport
from taciturn.wire.values import Problem

HASTE = Patience(attempts=3, first_wait_s=0.0, longest_wait_s=0.0)


class Lossy(httpx.BaseTransport):
    """Loses requests before, or answers after, the gateway has acted; or says it is overloaded."""

    def __init__(self, inner: httpx.Client, faults: list[str]) -> None:
        self.inner, self.faults = inner, faults

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refused":
            raise httpx.ConnectError("refused")
        if fault == "lost before":
            raise httpx.ReadTimeout("lost")
        if fault in ("502", "429"):
            return httpx.Response(int(fault), headers={"retry-after": "0"}, request=request)
        response = self.inner.send(request)
        if fault == "lost after":
            raise httpx.ReadError("lost")
        return response


def lossy(fake: FakeApi, *faults: str) -> Client:
    http = httpx.Client(transport=Lossy(fake.http(), list(faults)), base_url=URL)
    return Client(URL, TOKEN, patience=HASTE, http=http, environment={})


@pytest.mark.parametrize(
    "faults",
    [
        ("lost before",),
        ("lost after",),
        ("refused", "lost after"),
        ("lost after", "lost after"),
        ("502", "429"),
    ],
)
def test_one_call_makes_one_job(fake: FakeApi, client: Client, faults: tuple[str, ...]) -> None:
    data = client.dataset("phee")
    transport = lossy(fake, *faults).transport
    job = replace(data, transport=transport).fit("m", target_epsilon=3)
    assert list(fake.jobs) == [job.id]


def test_two_calls_make_two_jobs(fake: FakeApi, client: Client) -> None:
    data = client.dataset("phee")
    assert data.fit("m", target_epsilon=3).id != data.fit("m", target_epsilon=3).id


def test_a_post_without_a_key_is_not_repeated_once_it_may_have_arrived(fake: FakeApi) -> None:
    client = lossy(fake, "lost after")
    with pytest.raises(UnavailableError, match="did not answer"):
        client.admin.add_token("ci")
    assert fake.seen == ["POST /v1/tokens"]
    assert lossy(fake, "refused").admin.add_token("ci").token == "tac_secret"


def test_removed_by_the_attempt_whose_answer_was_lost(fake: FakeApi, client: Client) -> None:
    lossy(fake, "lost after").remove_dataset("phee")
    assert fake.datasets == {}
    with pytest.raises(NotThereError):
        client.remove_dataset("phee")


def test_gives_up_after_so_many_attempts(fake: FakeApi) -> None:
    with pytest.raises(UnavailableError) as caught:
        lossy(fake, *["refused"] * 3).whoami()
    assert (caught.value.code, fake.seen) == ("unreachable", [])
    with pytest.raises(UnavailableError):
        lossy(fake, *["502"] * 3).whoami()


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("unauthenticated", 401, AuthenticationError),
        ("separation_of_duty", 403, PermissionDeniedError),
        ("not_found", 404, NotThereError),
        ("conflict", 409, ConflictError),
        ("budget_exceeded", 409, RemoteBudgetError),
        ("expired", 410, ConflictError),
        ("invalid", 422, InvalidRequestError),
        ("too_many_requests", 429, TooManyRequestsError),
        ("internal", 500, GatewayError),
        ("a_code_of_the_future", 418, GatewayError),
    ],
)
def test_refusals(
    fake: FakeApi, client: Client, code: str, status: int, kind: type[GatewayError]
) -> None:
    fake.failing = Problem(
        type="t", title="t", status=status, detail="no room", code=code, incident="inc_1"
    )
    with pytest.raises(kind, match="no room") as caught:
        client.whoami()
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.incident == "inc_1"


def test_a_remote_budget_error_is_a_budget_error(fake: FakeApi, client: Client) -> None:
    data = client.dataset("phee")
    fake.failing = Problem(type="t", title="t", status=409, detail="no", code="budget_exceeded")
    with pytest.raises(taciturn.BudgetExceededError) as caught:
        data.fit("m", target_epsilon=3)
    assert caught.value.grant is None
    assert fake.jobs == {}


def test_something_that_is_no_gateway() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>hello")

    http = httpx.Client(transport=httpx.MockTransport(answer))
    with pytest.raises(GatewayError, match="versions") as caught:
        Client(URL, TOKEN, http=http, environment={}).whoami()
    assert TOKEN not in str(caught.value)


def test_pages_are_followed(fake: FakeApi, client: Client) -> None:
    fake.datasets |= dict.fromkeys(("b", "c"), fake.datasets["phee"])
    assert len(client.list_datasets()) == 3
    assert fake.seen.count("GET /v1/datasets") == 3


def test_waits_grow_and_differ() -> None:
    patience = Patience(first_wait_s=1.0, longest_wait_s=8.0)
    assert [patience.wait_s(attempt, 1.0) for attempt in range(5)] == [1, 2, 4, 8, 8]
    assert patience.wait_s(2, 0.0) == 2
    assert patience.wait_s(10_000, 1.0) == 8


class Broken(httpx.SyncByteStream):
    """A body whose connection breaks in the middle of a message."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self.text.encode()
        raise httpx.ReadError("broken")


def test_a_broken_stream_goes_on_where_it_broke(fake: FakeApi) -> None:
    events = [event.model_dump_json(exclude_none=True) for event in fake.events()]
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        after = int(asked[-1] or 0)
        text = "".join(f"data: {event}\n\n" for event in events[after : after + 3])
        return httpx.Response(200, stream=Broken(f": alive\n\n{text}data: {{"))

    from taciturn.sdk.stream import job_events

    http = httpx.Client(transport=httpx.MockTransport(answer))
    transport = Transport(URL, TOKEN, patience=HASTE, http=http)
    found = [event.sequence for event in job_events(transport, "job_1")]
    assert found == list(range(1, len(events) + 1))
    assert asked == [None, "3", "6"]


def test_a_stream_that_never_comes_back_is_given_up(fake: FakeApi, client: Client) -> None:
    job = client.dataset("phee").fit("m", target_epsilon=3)
    gone = lossy(fake, *["lost before"] * 3)
    with pytest.raises(UnavailableError):
        list(Job(gone.transport, job.view, read_result).events())


def test_a_download_is_whole_or_not_there(fake: FakeApi, tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Broken("half"))

    http = httpx.Client(transport=httpx.MockTransport(answer))
    transport = Transport(URL, TOKEN, patience=HASTE, http=http)
    with pytest.raises(UnavailableError):
        transport.download("jobs/j/files/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_messages() -> None:
    lines = ["", ": c", "id: 7", "event: e", "data: a", "data:b", "", "x", "data: cut"]
    (found,) = messages(lines)
    assert (found.data, found.id, found.event) == ("a\nb", "7", "e")


def test_credentials_are_kept_for_one_user_and_one_gateway(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(AuthenticationError, match="taciturn login"):
        find_credentials(None, None, home)
    path = keep_credentials(Credentials("https://a.example", "tac_kept", "ada"), home)
    assert path == credentials_path(home)
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_credentials(None, None, home).token == "tac_kept"
    with pytest.raises(AuthenticationError, match="no token"):
        find_credentials("https://b.example", None, home)
    given = {**home, "TACITURN_URL": "https://b.example/", "TACITURN_TOKEN": "tac_env"}
    assert find_credentials(None, None, given) == Credentials("https://b.example", "tac_env")
    assert "tac_kept" not in repr(find_credentials(None, None, home))
    path.chmod(0o644)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        find_credentials(None, None, home)
    assert forget_credentials(home)
    assert not forget_credentials(home)
    with pytest.raises(AuthenticationError, match="begin with"):
        find_credentials("a.example", "t", {})
