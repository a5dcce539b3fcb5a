"""Pages of the console, found from the application, at addresses that lead somewhere.

A page that is added is found here without a word: its path's parameters are filled by the segment
before them, as in `/jobs/{id}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.dependencies.models import Dependant
from sqlalchemy import Connection, insert, update
from starlette.types import Message, Receive, Scope, Send

from support.gateway import DATASET, MODEL, NAMESPACE, GatewayWorld, fit, plan_of
from support.released_files import report
from taciturn.server.http.access import Requires
from taciturn.server.http.openapi import Operation, operations
from taciturn.server.identity.permissions import PERMISSIONS
from taciturn.server.identity.secret import new_id
from taciturn.server.jobs.events import Events
from taciturn.server.schema.tables import datasets, incidents, jobs, notification_endpoints
from taciturn.wire.events import (
    JobEvent,
    NodeEvent,
    ProgressEvent,
    Stage,
    StageEvent,
    StateEvent,
)
from taciturn.wire.identity import Role
from taciturn.wire.jobs import JobState

ROLE_OF = {"olga": Role.OWNER, "paul": Role.PRACTITIONER, "ann": Role.AUDITOR, "adam": Role.ADMIN}
"""One person of each role, who is meant to see what there is."""

SECRETS = ("hushed purpose", "hushed model", "hushed description", "hushed log")
"""Words of the furnished world that are not for everybody."""

SPLIT_KEY = "5e" * 32
"""Key of the furnished dataset, which nobody may see."""

BY_CODE = "/login-requests/"
"""Pages for whoever knows a code, which somebody reads off a screen."""

_NO_PAGES = ("/v1", "/openai", "/metrics", "/static")


@dataclass(frozen=True, slots=True)
class Page:
    """A page at an address.

    Attributes:
        template: path of its route.
        needs: actions that its reader must be allowed.
        public: True if nobody has to sign in for it.
    """

    address: str
    template: str
    needs: frozenset[Any]
    public: bool

    def is_for(self, role: Role) -> bool:
        """Return True if the role may open it; what it finds there is another question."""
        return all(role in PERMISSIONS[action] for action in self.needs)


def console_operations(app: Any) -> Iterator[Operation]:
    """Return everything that the console answers to: all routes that are not for programs."""
    for operation in operations(app):
        if not operation.path.startswith(_NO_PAGES):
            yield operation


def console_pages(app: Any, things: Mapping[str, str]) -> list[Page]:
    """Return all pages that are read, at addresses made of `things`."""
    return [
        Page(
            address=address_of(operation, things),
            template=operation.path,
            needs=_needs(operation),
            public=not _needs(operation),
        )
        for operation in console_operations(app)
        if operation.method == "GET"
    ]


def _needs(operation: Operation) -> frozenset[Any]:
    return frozenset(guard.action for guard in operation.guards if isinstance(guard, Requires))


def address_of(operation: Operation, things: Mapping[str, str]) -> str:
    """Return the path of an operation, its parameters filled.

    Raises:
        KeyError: a parameter is of a kind that `things` does not name; name it in `furnished`.
    """
    before = ""
    parts = []
    for part in operation.path.split("/"):
        match = re.fullmatch(r"\{(\w+)(?::\w+)?\}", part)
        parts.append(part if match is None else _thing(things, before, match[1], operation.path))
        before = part
    query = "&".join(
        f"{parameter.alias}={_thing(things, '', parameter.alias, operation.path)}"
        for parameter in _parameters(operation, "query_params")
        if parameter.field_info.is_required()
    )
    return "/".join(parts) + (f"?{query}" if query else "")


def _dependants(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _dependants(part)


def _parameters(operation: Operation, kind: str) -> Iterator[Any]:
    """Return a route's parameters, and those of what it depends on."""
    for dependant in _dependants(operation.route.dependant):
        yield from getattr(dependant, kind)


def _thing(things: Mapping[str, str], segment: str, name: str, path: str) -> str:
    for key in (segment, name, name.removesuffix("_id") + "s"):
        if key in things:
            return things[key]
    raise KeyError(f"{path}: `furnished` in support/pages.py names nothing for {{{name}}}")


@dataclass(frozen=True, slots=True)
class PostedForm:
    """A form of the console, its fields found from its route.

    Attributes:
        texts: fields that people fill with words of their own.
        values: plausible values of all of its fields that must be there.
    """

    address: str
    template: str
    needs: frozenset[Any]
    texts: tuple[str, ...]
    values: Mapping[str, str]


def console_forms(app: Any, things: Mapping[str, str]) -> list[PostedForm]:
    """Return all forms that are sent."""
    return [
        _form(operation, things)
        for operation in console_operations(app)
        if operation.method == "POST" and _needs(operation)
    ]


def _form(operation: Operation, things: Mapping[str, str]) -> PostedForm:
    texts, values = [], {}
    for parameter in _parameters(operation, "body_params"):
        name, kind = parameter.alias, str(parameter.field_info.annotation)
        literal = re.search(r"Literal\['([^']*)'", kind)
        if "str" in kind and literal is None:
            texts.append(name)
        # A selection only where it has to be: a process tries each, which takes most of the time.
        offered = name in things or (name in _PLAUSIBLE and name != "select")
        if parameter.field_info.is_required() or offered:
            value = literal[1] if literal else _PLAUSIBLE.get(name, things.get(name, "1"))
            values[name] = value
    return PostedForm(
        address=address_of(operation, things),
        template=operation.path,
        needs=_needs(operation),
        texts=tuple(texts),
        values=values,
    )


_PLAUSIBLE = {
    "select": "lower(context) AS text",
    "text_field": "context",
    "target_epsilon": "0.01",
    "epsilon": "0.01",
    "delta": "1e-7",
    "model": MODEL,
    "steps": "2",
    "batch_size": "20",
}


@dataclass
class HangUp:
    """The application, for readers who hang up once a stream of events has begun."""

    app: Any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        streams = False

        async def hearing() -> Message:
            return {"type": "http.disconnect"} if streams else await receive()

        async def saying(message: Message) -> None:
            nonlocal streams
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                streams = headers.get(b"content-type", b"").startswith(b"text/event-stream")
                await send(message)
                if streams:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif not streams:
                await send(message)

        await self.app(scope, hearing, saying)


def furnished(world: GatewayWorld) -> dict[str, str]:
    """Furnish a populated gateway with one of everything; returns what stands for a parameter.

    What is there is olga's and paul's. SECRETS are words of it.
    """
    world.set_terms(approvers=["user:otto", "group:board"])
    description = {"description": SECRETS[2], "mock": [{"id": "n1", "context": "Mr Mock coughs."}]}
    world.ask("olga", "PATCH", f"/datasets/{DATASET}", description)
    key = update(datasets).where(datasets.c.name == DATASET).values(split_key=SPLIT_KEY)
    world.gateway.write(lambda connection: connection.execute(key))
    asked = world.submit(fit(target_epsilon="unlimited", purpose=SECRETS[0]), key="asked-0001")
    done = _job_with_events(world, JobState.SUCCEEDED)
    running = _job_with_events(world, JobState.RUNNING)
    incident = _incident(world, done)
    _job_with_events(world, JobState.FAILED, failure="internal", incident=incident)
    text = report().model_dump_json()
    model = world.add_model(done, name=SECRETS[1], report=text, owner_id=world.users["paul"])
    finished = update(jobs).where(jobs.c.id == done).values(model_id=model)
    world.gateway.write(lambda connection: connection.execute(finished))
    world.spend(done, ["user:paul"])
    world.clock.forward(60)
    asked_by = {"host": "a laptop of paul's"}
    code = world.client.post("/v1/login-requests", json=asked_by).json()["code"]
    token = world.get("tokens", "paul").json()["items"][0]["id"]
    return {
        "datasets": DATASET,
        "dataset": DATASET,
        "jobs": done,
        "job": done,
        "running": running,
        "models": model,
        "approvals": str(asked.json()["approval"]),
        "incidents": incident,
        "people": "bea",
        "users": "bea",
        "user": "bea",
        "endpoints": _endpoint(world),
        "login-requests": code,
        "tokens": token,
        "sessions": token,
        "namespaces": NAMESPACE,
        "namespace": NAMESPACE,
        "policies": NAMESPACE,
        "budgets": NAMESPACE,
        "ledger": NAMESPACE,
        "grants": "user:paul",
        "holder": "user:paul",
        "groups": "team",
        "group": "team",
        "base-models": MODEL,
        "public-datasets": _declared_public(world),
        "compare": done,
    }


def _declared_public(world: GatewayWorld) -> str:
    text = {"source": "/open/guides.csv", "licence": "CC0", "origin": "guides of a ministry"}
    answer = world.ask("olga", "POST", "/public-datasets", {"name": "guides", **text})
    return str(answer.json()["name"])


def _endpoint(world: GatewayWorld) -> str:
    row = {
        "id": new_id("end"),
        "user_id": world.users["paul"],
        "name": "the team's channel",
        "host": "chat.hospital.example",
        "url": "sealed",
        "form": "json",
        "secret": "sealed",
        "created_at_ms": world.gateway.now_ms(),
    }
    world.gateway.write(
        lambda connection: connection.execute(insert(notification_endpoints).values(row))
    )
    return str(row["id"])


def _incident(world: GatewayWorld, job: str) -> str:
    row = {
        "id": new_id("inc"),
        "job_id": job,
        "namespace": NAMESPACE,
        "log": SECRETS[3].encode(),
        "created_at_ms": world.gateway.now_ms(),
    }
    world.gateway.write(lambda connection: connection.execute(insert(incidents).values(row)))
    return str(row["id"])


def _job_with_events(world: GatewayWorld, state: JobState, **columns: Any) -> str:
    body = fit(purpose=SECRETS[0], name=SECRETS[1])
    job = world.add_job("fit", state=state, request=body, plan=plan_of(body), **columns)
    events = Events(world.gateway)
    said: list[JobEvent] = [
        StateEvent(state=JobState.QUEUED),
        NodeEvent(code="node.creating", text="a machine is being made"),
        *(StageEvent(stage=stage) for stage in (Stage.LOADING, Stage.READING, Stage.TRAINING)),
        ProgressEvent(step=10, steps=20, epsilon=0.4),
    ]
    final = [StateEvent(state=state)] if state.over else []
    for event in [*said, *final]:

        def say(connection: Connection, event: JobEvent = event) -> None:
            events.append(connection, job, event)

        world.gateway.write(say)
        world.clock.forward(10)
    return job
