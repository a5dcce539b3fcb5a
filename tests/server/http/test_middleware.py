"""Around every request: an id, a record before the answer, limits, headers; nothing of its values
in logs, errors or figures."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, Request
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from support.gateway import GatewayWorld, bearer
from taciturn.errors import DatabaseUnavailableError
from taciturn.server import audit_log, logs
from taciturn.server.context import Gateway
from taciturn.server.http.access import Requires, public
from taciturn.server.http.middleware import SECURITY_HEADERS
from taciturn.server.identity.permissions import Action
from taciturn.wire.identity import NewUser, Role

CANARY = "Franz-Josef-4711"


@pytest.fixture
def log() -> Iterator[StringIO]:
    """What the operator's log says."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    stream = StringIO()
    logs.set_up(stream)
    yield stream
    root.handlers[:], root.level = kept[0], kept[1]


@pytest.fixture
def broken(lite: GatewayWorld) -> GatewayWorld:
    """An application with routes that fail while they hold a value."""
    router = APIRouter(dependencies=[Depends(Requires(Action.SELF_READ))])

    @router.post("/broken")
    def fail(new: NewUser) -> None:
        try:
            raise KeyError(new.display_name)
        except KeyError as error:
            raise RuntimeError(f"cannot cope with {new.display_name}") from error

    @router.get("/broken-off")
    def break_off() -> Any:
        from starlette.responses import StreamingResponse

        def body() -> Iterator[str]:
            yield "begun"
            raise RuntimeError(CANARY)

        return StreamingResponse(body())

    lite.app.include_router(router, prefix="/v1")
    return lite


def lines(log: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_failure_has_an_incident_and_no_words(broken: GatewayWorld, log: StringIO) -> None:
    ada = broken.person("ada", Role.OWNER)
    body = {"name": "eve", "roles": ["owner"], "display_name": CANARY}
    answer = broken.client.post("/v1/broken?q=" + CANARY, headers=ada, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal")
    assert answer.headers["content-type"] == "application/problem+json"
    assert CANARY not in answer.text
    assert CANARY not in log.getvalue()
    failed = next(line for line in lines(log) if line["message"] == "request failed")
    assert failed["incident"] == problem["incident"]
    assert any("builtins.KeyError" in each for each in failed["exception"])
    assert any(each.rstrip().endswith(" fail") for each in failed["exception"])
    assert broken.recorded()[-1].code == "internal"


def test_an_answer_that_breaks_off_is_logged_without_words(
    broken: GatewayWorld, log: StringIO
) -> None:
    ada = broken.person("ada", Role.OWNER)
    client = TestClient(broken.app, raise_server_exceptions=False)
    client.get("/v1/broken-off", headers=ada)
    assert "answer broken off" in log.getvalue()
    assert CANARY not in log.getvalue()


def test_no_token_reaches_the_log_or_the_record(lite: GatewayWorld, log: StringIO) -> None:
    ada = lite.person("ada", Role.OWNER)
    text_of = ada["Authorization"].split()[1]
    secret = text_of.split("_", 2)[2]
    lite.client.get("/v1/self", headers=ada, params={"token": text_of})
    lite.client.delete(f"/v1/tokens/{text_of}", headers=ada)
    lite.client.get("/v1/self", headers=bearer(text_of + "x"))
    logging.getLogger("taciturn").warning("holding %s", text_of)
    assert secret not in log.getvalue()
    assert secret not in str(lite.recorded())
    assert [row.status for row in lite.recorded()] == [200, 422, 401]
    assert all("tok_" in row.details for row in lite.recorded())


def test_the_record_says_who_did_what(lite: GatewayWorld) -> None:
    ada, eve = lite.person("ada", Role.OWNER), lite.person("eve", Role.AUDITOR)
    answer = lite.client.get("/v1/audit-log?actor=secret", headers=ada)
    row = lite.recorded()[-1]
    assert row.request_id == answer.headers["Taciturn-Request"]
    assert (row.actor, row.action, row.resource, row.status, row.code, row.address) == (
        "user:ada",
        "audit-log:read",
        "/v1/audit-log",
        403,
        "forbidden",
        "testclient",
    )
    lite.client.get("/v1/self", headers=ada)
    lite.clock.forward(hours=1)
    lite.client.get("/v1/self", headers=eve)
    own = lite.client.get("/v1/audit-log?actor=user:ada", headers=eve).json()["items"]
    assert [each["action"] for each in own] == ["self:read", "audit-log:read"]
    query = {"action": "self:read", "since": "2026-03-01T12:30:00Z"}
    later = lite.client.get("/v1/audit-log", params=query, headers=eve).json()["items"]
    assert [each["actor"] for each in later] == ["user:eve"]


def test_the_record_is_read_backwards_page_by_page(lite: GatewayWorld) -> None:
    """What is added meanwhile moves nothing: each row is there once."""
    eve = lite.person("eve", Role.AUDITOR)
    for _ in range(5):
        lite.client.get("/v1/self", headers=eve)
        lite.clock.forward(minutes=10)

    def read(**query: Any) -> Any:
        return lite.client.get("/v1/audit-log", params=query, headers=eve).json()

    newest = read(limit=2)
    assert [each["id"] for each in newest["items"]] == [5, 4]
    before = read(limit=2, cursor=newest["next_cursor"])
    last = read(limit=2, cursor=before["next_cursor"])
    assert [each["id"] for each in before["items"] + last["items"]] == [3, 2, 1]
    assert last["next_cursor"] is None
    span = {"since": "2026-03-01T12:10:00Z", "until": "2026-03-01T12:30:00Z"}
    assert [each["id"] for each in read(**span)["items"]] == [3, 2]
    backwards = read(since=span["until"], until=span["since"])
    assert (backwards["code"], "swap the two" in backwards["detail"]) == ("invalid", True)


def test_whoever_may_not_be_recorded_is_not_answered(
    lite: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = lite.person("ada", Role.OWNER)

    def full(*_: Any) -> None:
        raise DatabaseUnavailableError("disk is full")

    monkeypatch.setattr(audit_log, "_insert", full)
    answer = lite.client.get("/v1/self", headers=ada)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "ada" not in answer.text
    assert lite.client.get("/v1/health").is_success


def test_records_that_are_ready_together_are_committed_together(
    lite: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, batches, gate = audit_log.AuditLog(lite.gateway), [], threading.Event()

    written = audit_log._insert

    def counted(gateway: Gateway, rows: Sequence[dict[str, Any]]) -> None:
        batches.append(len(rows))
        gate.wait(60)
        written(gateway, rows)

    monkeypatch.setattr(audit_log, "_insert", counted)
    record = audit_log.Record(0, "a", "b", "/", 200, None, "req_1", None, None)
    kept = [log.keep(record)]
    while not batches:
        pass
    kept += [log.keep(record) for _ in range(20)]
    assert log.waiting == 20
    assert not any(each.done() for each in kept)
    gate.set()
    assert all(each.result(timeout=60) is None for each in kept)
    assert batches == [1, 20]
    assert len(lite.recorded()) == 21


def test_whoever_hangs_up_while_their_record_is_written_stops_nobody_else(
    lite: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream's reader that goes away cancels what waits for the record; the writer goes on."""
    log, writing, gate = audit_log.AuditLog(lite.gateway), threading.Event(), threading.Event()
    written = audit_log._insert

    def slowly(gateway: Gateway, rows: Sequence[dict[str, Any]]) -> None:
        writing.set()
        gate.wait(60)
        written(gateway, rows)

    monkeypatch.setattr(audit_log, "_insert", slowly)
    record = audit_log.Record(0, "a", "b", "/", 200, None, "req_1", None, None)

    async def hang_up() -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(log.keep(record)))
        await asyncio.to_thread(writing.wait, 60)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()

    asyncio.run(hang_up())
    assert log.keep(record).result(timeout=60) is None
    assert len(lite.recorded()) == 2


def test_a_large_body_is_refused_whether_or_not_it_says_so(lite: GatewayWorld) -> None:
    root = lite.person("root", Role.ADMIN)
    limit = lite.gateway.settings.request_limit_bytes
    said = lite.client.post("/v1/users", headers=root, content=b"x" * (limit + 1))
    assert (said.status_code, said.json()["code"]) == (413, "too_large")

    def chunks() -> Iterator[bytes]:
        yield from (b"x" * 2**20 for _ in range(limit // 2**20 + 1))

    unsaid = lite.client.post(
        "/v1/users",
        headers={**root, "Content-Type": "application/json"},
        content=chunks(),
    )
    assert (unsaid.status_code, unsaid.json()["code"]) == (413, "too_large")


def test_a_browser_gets_a_page_whatever_refuses(
    lite_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = GatewayWorld.open(lite_engine, tmp_path, anonymous_per_minute=3)
    browser = {"Accept": "text/html,*/*", **world.person("root", Role.ADMIN)}
    size = {"Content-Length": str(world.gateway.settings.request_limit_bytes + 1)}
    answers = {413: world.client.post("/people", headers={**browser, **size}, content=b"x")}
    for _ in range(5):
        answers[429] = world.client.get("/nowhere", headers={"Accept": "text/html"})
    for path, kind in (("/nowhere", "text/html"), ("/v1/nowhere", "application/problem+json")):
        answer = world.client.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 429
        assert answer.headers["Content-Type"].startswith(kind), path

    def full(*_: Any) -> None:
        raise DatabaseUnavailableError("disk is full")

    monkeypatch.setattr(audit_log, "_insert", full)
    answers[503] = world.client.get("/people", headers=browser)
    for status, answer in answers.items():
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"].startswith("text/html")
        assert f'<p class="status">{status}</p>' in answer.text
        assert "script-src" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Taciturn-Request"].startswith("req_")
        assert answer.headers["Cache-Control"] == "no-store"
    assert answers[429].headers["Retry-After"]
    assert answers[503].headers["Retry-After"] == "2"
    assert "root" not in answers[503].text, "who asked is not told where nothing is on record"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"name": 1e400}', b"\xff", b"null", b"{"])
def test_odd_bodies_are_invalid_and_not_failures(lite: GatewayWorld, body: bytes) -> None:
    root = {**lite.person("root", Role.ADMIN), "Content-Type": "application/json"}
    answer = lite.client.post("/v1/users", headers=root, content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_every_answer_has_the_security_headers_and_its_own_id(lite: GatewayWorld) -> None:
    ids = set()
    for path in ("/v1/health", "/v1/self", "/nowhere", "/metrics", "/openapi.json"):
        answer = lite.client.get(path, headers={"Taciturn-Request": "req_mine"})
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        ids.add(answer.headers["Taciturn-Request"])
    assert len(ids) == 5
    assert "req_mine" not in ids


def test_an_invalid_value_is_not_quoted(lite: GatewayWorld) -> None:
    root = lite.person("root", Role.ADMIN)
    body = {"name": "eve", "roles": ["owner"], "password": CANARY, CANARY: 1}
    for sent in (body, {**body, "roles": [CANARY]}):
        answer = lite.client.post("/v1/users", headers=root, json=sent)
        assert answer.status_code == 422
        assert f"'{CANARY}'" not in answer.text


def test_figures_name_routes_and_nobody_and_are_for_who_scrapes(
    lite: GatewayWorld, tmp_path: Path
) -> None:
    ada = lite.person("ada-lovelace", Role.OWNER)
    assert lite.client.get("/metrics", headers=bearer("p" * 20)).status_code == 404
    lite = GatewayWorld.open(lite.gateway.engine, tmp_path, metrics_token="p" * 20)
    lite.client.get("/v1/users/ada-lovelace", headers=ada)
    lite.services.attend()
    lite.services.metrics.watch("taciturn_pods", "Pods.", "state", lambda: {"running": 2})
    lite.services.metrics.watch("taciturn_bad", "Fails.", "x", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    for wrong in ({}, bearer("q" * 20), ada, {"Authorization": "Basic " + "p" * 20}):
        answer = lite.client.get("/metrics", headers=wrong)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    before = len(lite.recorded())
    figures = lite.client.get("/metrics", headers=bearer("p" * 20)).text
    assert len(lite.recorded()) == before
    assert 'route="/v1/users/{name}",status="403"} 1.0' in figures
    assert 'taciturn_pods{state="running"} 2.0' in figures
    assert 'taciturn_queue{queue="audit_log"}' in figures
    assert "lovelace" not in figures


def test_a_worker_is_on_record_only_where_it_was_refused(lite: GatewayWorld) -> None:
    router = APIRouter()

    @router.post("/worker/jobs/{job_id}/heartbeat", dependencies=[Depends(public)])
    def beat(job_id: str, request: Request) -> None:
        del request.state.unrecorded

    lite.app.include_router(router, prefix="/v1")
    routes = lite.app.router.routes
    routes.insert(0, routes.pop())  # before the real one, which needs a job
    assert lite.client.post("/v1/worker/jobs/job_1/heartbeat").is_success
    assert lite.recorded() == []
    refused = lite.client.get("/v1/worker/jobs/job_1/heartbeat")
    assert refused.status_code == 405
    assert [row.status for row in lite.recorded()] == [405]


def test_ready_says_whether_the_database_is_there(lite: GatewayWorld) -> None:
    assert lite.client.get("/v1/ready").is_success
    with lite.gateway.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    answer = lite.client.get("/v1/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_not_ready_while_stopping(lite: GatewayWorld) -> None:
    with TestClient(lite.app) as client:
        assert client.get("/v1/ready").is_success
        lite.services.background.announce_stop()
        assert client.get("/v1/ready").status_code == 503
        assert client.get("/v1/health").is_success
