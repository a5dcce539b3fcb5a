"""Every route refuses everybody who may not use it, and what is refused does not run.

The matrix is made from the application: each route says by a dependency who may come in, and a
route that doesn't fails here. Routes that are added are tested without a word in this file.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from sqlalchemy import Engine, Row, select, update

from support.gateway import GatewayWorld, bearer
from taciturn.server.app import create_app
from taciturn.server.http.access import Requires, any_worker, public, scraper, worker
from taciturn.server.http.openapi import Operation, operations, unguarded
from taciturn.server.identity.permissions import PERMISSIONS, Action
from taciturn.server.schema.tables import metadata, users
from taciturn.wire.identity import Role

ROLES = (*Role, None)
"""None is somebody without any role."""


@dataclass(slots=True)
class Callers:
    """Headers of everybody who might come, by a name for them."""

    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    actions: dict[str, frozenset[Action]] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)

    def add(
        self, name: str, headers: dict[str, str], allowed: frozenset[Action], status: int
    ) -> None:
        self.headers[name], self.actions[name], self.status[name] = headers, allowed, status


def gathered(world: GatewayWorld) -> Callers:
    """One of each role, and everybody with something wrong about their token."""
    callers, nothing = Callers(), frozenset[Action]()
    directory = world.services.directory
    for role in ROLES:
        name = role.value if role else "nobody"
        allowed = frozenset(a for a, roles in PERMISSIONS.items() if role in roles)
        callers.add(name, world.person(name, *([role] if role else [])), allowed, 403)
    everything = world.services.directory.create_user(
        "all", [Role.ADMIN, Role.OWNER, Role.PRACTITIONER]
    )
    expired = bearer(world.token(everything, days=-1))
    revoked = world.token(everything)
    directory.revoke(directory.authenticate(revoked).token_id)
    changed = world.token(everything)
    other_end = "A" if changed[-1] != "A" else "B"
    callers.add("no token", {}, nothing, 401)
    callers.add("another scheme", {"Authorization": f"Basic {changed}"}, nothing, 401)
    callers.add("not a token", bearer("tac_x"), nothing, 401)
    callers.add("another secret", bearer(changed[:-1] + other_end), nothing, 401)
    callers.add("expired", expired, nothing, 401)
    callers.add("revoked", bearer(revoked), nothing, 401)
    locked = world.person("locked", Role.ADMIN, Role.OWNER, Role.PRACTITIONER)
    root = world.person("root", Role.ADMIN)
    world.client.patch("/v1/users/locked", headers=root, json={"disabled": True})
    callers.add("disabled", locked, nothing, 401)
    callers.add("worker", world.worker_headers("job_" + "1" * 20), nothing, 403)
    scoped = world.token(everything, ["jobs:read"])
    callers.add("scoped", bearer(scoped), frozenset({Action.JOBS_READ}), 403)
    return callers


class RanError(Exception):
    """The endpoint was reached."""


def path_of(operation: Operation) -> str:
    """The path, with something plausible for each parameter."""
    return re.sub(r"\{[^}]*\}", "job_" + "2" * 20, operation.path)


@dataclass(slots=True)
class Matrix:
    """An application whose endpoints only say that they ran, and its callers."""

    world: GatewayWorld
    callers: Callers
    ran: list[str]

    def ask(self, operation: Operation, caller: str) -> int:
        """The status that a caller gets for a well-formed request."""
        self.ran.clear()
        answer = self.world.client.request(
            operation.method,
            path_of(operation),
            headers=self.callers.headers[caller],
            json={} if operation.method in ("POST", "PUT", "PATCH") else None,
        )
        return answer.status_code


def contents(engine: Engine) -> dict[str, str]:
    """A digest of what each table holds, but for the audit log, which grows by what is refused."""
    with engine.connect() as connection:
        return {
            name: _digest(connection.execute(select(table)).all())
            for name, table in metadata.tables.items()
            if name != "audit_log"
        }


def _digest(rows: Sequence[Row[Any]]) -> str:
    return hashlib.sha256("\n".join(sorted(repr(tuple(row)) for row in rows)).encode()).hexdigest()


@pytest.fixture(scope="module")
def matrix(
    open_copy: Callable[[Path], Engine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("matrix")
    engine = open_copy(folder)
    world = GatewayWorld.open(engine, folder, metrics_token="m" * 20, anonymous_per_minute=10**6)
    callers, ran = gathered(world), list[str]()

    async def instead(*, dependant: Dependant, **_: Any) -> None:
        ran.append(str(dependant.path))
        raise RanError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastapi.routing.run_endpoint_function", instead)
        yield Matrix(world, callers, ran)


def refused(matrix: Matrix, operation: Operation) -> list[str]:
    """Callers who must not come in; all that a route's guards together do not allow."""
    names = list(matrix.callers.headers)
    if any(isinstance(guard, Requires) for guard in operation.guards):
        needed = {guard.action for guard in operation.guards if isinstance(guard, Requires)}
        return [name for name in names if not needed <= matrix.callers.actions[name]]
    if worker in operation.guards:
        return names  # the worker among them is another job's
    if any_worker in operation.guards:
        return [name for name in names if name != "worker"]
    return names if scraper in operation.guards else []


def test_every_route_says_who_may_come_in(matrix: Matrix) -> None:
    assert unguarded(matrix.world.app) == []


def test_every_endpoint_is_one_that_the_spy_sees(matrix: Matrix) -> None:
    endpoints = [op.route.endpoint for op in operations(matrix.world.app)]
    assert not any(map(inspect.isgeneratorfunction, endpoints))
    assert not any(map(inspect.isasyncgenfunction, endpoints))


def admitted(matrix: Matrix) -> Iterator[tuple[Any, ...]]:
    """Ask for every route as everybody who may not; gives those who were not refused as told."""
    asked = 0
    for operation in operations(matrix.world.app):
        for caller in refused(matrix, operation):
            asked += 1
            status = matrix.ask(operation, caller)
            unknown = matrix.callers.status[caller] == 401 or scraper in operation.guards
            expected = 401 if unknown else 403
            if status != expected or matrix.ran:
                yield operation.method, operation.path, caller, status, *matrix.ran
    assert asked > 100


def test_who_may_not_is_refused_and_nothing_runs(matrix: Matrix) -> None:
    before = contents(matrix.world.gateway.engine)
    assert list(admitted(matrix)) == []
    assert contents(matrix.world.gateway.engine) == before


def test_a_row_that_changes_is_seen(matrix: Matrix) -> None:
    """The mutant: a refused request that changes a row, and adds and removes none."""
    engine = matrix.world.gateway.engine
    before = contents(engine)
    with engine.connect() as connection:
        connection.execute(update(users).where(users.c.name == "nobody").values(disabled=True))
        changed = {
            name: _digest(connection.execute(select(table)).all())
            for name, table in metadata.tables.items()
            if name != "audit_log"
        }
        connection.rollback()
    assert {name for name in before if changed[name] != before[name]} == {"users"}


def test_every_refusal_is_on_record(matrix: Matrix) -> None:
    """Who, what, why; and of the token that was shown its id at most."""
    operation = next(op for op in operations(matrix.world.app) if op.path == "/v1/users")
    for caller in refused(matrix, operation):
        status = matrix.ask(operation, caller)
        row = matrix.world.recorded()[-1]
        assert (row.status, row.resource, row.action) == (status, path_of(operation), "users:read")
        assert row.code in ("unauthenticated", "forbidden")
        secret = matrix.callers.headers[caller].get("Authorization", "")[-20:]
        assert not secret or secret not in str(row)


def test_who_may_comes_in(matrix: Matrix) -> None:
    """Else a gateway that refuses everything would pass."""
    reached: set[Action] = set()
    for operation in operations(matrix.world.app):
        needed = {guard.action for guard in operation.guards if isinstance(guard, Requires)}
        if "{" in operation.path or "requestBody" in _described(matrix, operation):
            continue
        for caller in Role:
            if needed and needed <= matrix.callers.actions[caller.value]:
                status = matrix.ask(operation, caller.value)
                assert status not in (401, 403), (operation.path, caller)
                reached |= needed if matrix.ran else set()
    assert {Action.SELF_READ, Action.USERS_READ, Action.AUDIT_LOG_READ} <= reached


def _described(matrix: Matrix, operation: Operation) -> dict[str, Any]:
    paths = matrix.world.app.openapi()["paths"]
    found: dict[str, Any] = paths.get(operation.path, {}).get(operation.method.lower(), {})
    return found


def test_a_route_that_says_nothing_is_found(matrix: Matrix) -> None:
    router = APIRouter()
    router.add_api_route("/open", lambda: None)
    router.add_api_route("/both", lambda: None, dependencies=[Depends(public), Depends(worker)])
    app = create_app(matrix.world.gateway, trials=matrix.world.services.trials)
    app.include_router(router, prefix="/v1")
    app.add_route("/plain", lambda request: None)  # type: ignore[arg-type, return-value]
    assert unguarded(app) == ["GET /v1/open", "GET /v1/both", "/plain"]


def test_a_guard_that_ignores_its_verdict_is_found(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: who the caller is gets looked up, and what follows from it doesn't happen."""

    async def lenient(self: Requires, request: Any) -> Any:
        return None

    monkeypatch.setattr(Requires, "__call__", lenient)
    assert next(admitted(matrix), None) is not None
