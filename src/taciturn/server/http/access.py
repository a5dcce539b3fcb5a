"""Dependencies of routes: the caller, if they may do this; the services; pagination."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from starlette.concurrency import run_in_threadpool

from taciturn.server.identity.directory import unauthenticated
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal, WorkerPrincipal
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services


async def services(request: Request) -> Services:
    """The services of this app."""
    app_services: Services = request.app.state.services
    return app_services


_CHECK_S = 30.0
Svc = Annotated[Services, Depends(services)]


class Requires:
    """A dependency: the caller, who may do `action`; otherwise 401 or 403, and nothing ran.

    A bearer token, or a browser's session cookie, which for a write needs the CSRF header too.
    Routes keep the instance, so that documents and deny tests are made from them.
    """

    def __init__(self, action: Action) -> None:
        self.action = action

    async def __call__(self, request: Request) -> Principal:
        """Establish the caller; raises ProblemError `unauthenticated`, `csrf` or `forbidden`."""
        request.state.action = self.action.value
        caller = await _caller(request)
        if not isinstance(caller, Principal):
            raise ProblemError("forbidden", "a worker's token is for its own job only")
        if self.action not in caller.actions:
            raise ProblemError(
                "forbidden",
                f"this needs the permission {self.action.value!r}, which your roles "
                f"({', '.join(sorted(caller.roles)) or 'none'}) or this token do not give",
            )
        return caller


@dataclass(slots=True)
class JobAccess:
    """Access of somebody who watches a job: looked up again when any access has changed here, and
    now and then, for a change in another process may have gone unheard.

    Made before the first look at the job, so that no change falls between the two.
    """

    request: Request
    caller: Principal
    services: Services
    job_id: str
    generation: int = field(init=False)
    checked_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.generation = self.services.directory.remembered.generation

    async def __call__(self) -> bool:
        """Return True while they may follow the job."""
        if self.caller.expires_at_ms <= self.services.gateway.now_ms():
            return False
        now_s, generation = time.monotonic(), self.services.directory.remembered.generation
        if generation == self.generation and now_s - self.checked_s < _CHECK_S:
            return True
        try:
            self.caller = await Requires(Action.JOBS_READ)(self.request)
            await run_in_threadpool(self.services.results.check_watched, self.caller, self.job_id)
        except ProblemError:
            return False
        self.generation, self.checked_s = generation, now_s
        return True


async def worker(request: Request, job_id: str) -> WorkerPrincipal:
    """A dependency of worker routes: the worker of this very job."""
    caller = await _caller(request)
    if not isinstance(caller, WorkerPrincipal) or caller.job_id != job_id:
        raise ProblemError("forbidden", "only the worker of this job may say this")
    return caller


async def any_worker(request: Request) -> WorkerPrincipal:
    """A dependency of worker routes that are not under a job: the worker of some job."""
    caller = await _caller(request)
    if not isinstance(caller, WorkerPrincipal):
        raise ProblemError("forbidden", "only a worker may ask this")
    request.state.actor = f"worker:{caller.job_id}"
    return caller


async def public(request: Request) -> None:
    """A dependency that says: anybody may ask this, and it is not on record. Every route has this
    one, `entrance`, `scraper`, `worker` or a `Requires`; a test sees to it."""
    request.state.unrecorded = True


async def scraper(request: Request) -> None:
    """A dependency of `/metrics`: whoever shows the token that the operator has set for it. How
    many jobs there are, and how long answers take, is nobody else's business."""
    request.state.action = "metrics:read"
    token = services_of(request).gateway.settings.metrics_token
    if token is None:
        raise ProblemError(
            "not_found", "no figures are shown, for TACITURN_METRICS_TOKEN is not set"
        )
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(
        credentials.strip().encode(), expected
    ):
        raise unauthenticated()
    request.state.unrecorded = True


async def entrance(request: Request) -> None:
    """A dependency that says: anybody may ask this, because it is how they come in. Raises
    ProblemError `too_many_requests`, before anything ran, where an address comes in too often."""
    request.state.counted = True
    refusal = services_of(request).entrants.enter(request.client.host if request.client else "")
    if refusal is not None:
        request.state.unrecorded = not refusal.on_record
        raise refusal.problem


Guard = Requires | Callable[..., Any]
_OTHERS = (worker, any_worker, public, entrance, scraper)


def guards(dependant: Dependant) -> Iterator[Guard]:
    """Guards among a route's dependencies: a Requires, or one of the functions above."""
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Requires) or dependency.call in _OTHERS:
            yield dependency.call
        yield from guards(dependency)


async def _caller(request: Request) -> Principal | WorkerPrincipal:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise unauthenticated()
        return await _authenticate(request, credentials.strip(), session=False)
    sessions = services_of(request).sessions
    cookie = sessions.token(request)
    if cookie is None:
        raise unauthenticated()
    caller = await _authenticate(request, cookie, session=True)
    sessions.check_csrf(request, cookie)
    return caller


async def _authenticate(
    request: Request, token: str, *, session: bool
) -> Principal | WorkerPrincipal:
    """The caller, on record from now on. A browser's token counts in its cookie only, and no other
    token counts there."""
    directory = services_of(request).directory
    caller: Principal | WorkerPrincipal | None = directory.cached_principal(token)
    if caller is None:
        caller = await run_in_threadpool(directory.authenticate, token)
    if session != (isinstance(caller, Principal) and caller.session):
        raise unauthenticated()
    request.state.caller = caller
    return caller


def services_of(request: Request) -> Services:
    """The services of this app, for what is no route."""
    app_services: Services = request.app.state.services
    return app_services
