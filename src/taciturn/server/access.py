"""What routes depend on: the caller, if they may do this; the services; pagination."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from taciturn.server.identity.directory import unauthenticated
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal, WorkerPrincipal
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services


def services(request: Request) -> Services:
    """The services of this app."""
    found: Services = request.app.state.services
    return found


Svc = Annotated[Services, Depends(services)]


class Requires:
    """A dependency: the caller, who may do `action`; otherwise 401 or 403, and nothing ran.

    Routes keep the instance, so that documents and deny tests are made from them.
    """

    def __init__(self, action: Action) -> None:
        self.action = action

    def __call__(self, request: Request) -> Principal:
        """Establish the caller; raises ProblemError `unauthenticated` or `forbidden`."""
        caller = _caller(request)
        if not isinstance(caller, Principal):
            raise ProblemError("forbidden", "a worker's token is for its own job only")
        if self.action not in caller.actions:
            raise ProblemError(
                "forbidden",
                f"this needs the permission {self.action.value!r}, which your roles "
                f"({', '.join(sorted(caller.roles)) or 'none'}) or this token do not give",
            )
        return caller


def worker(request: Request, job_id: str) -> WorkerPrincipal:
    """A dependency of worker routes: the worker of this very job."""
    caller = _caller(request)
    if not isinstance(caller, WorkerPrincipal) or caller.job_id != job_id:
        raise ProblemError("forbidden", "only the worker of this job may say this")
    request.state.actor = f"worker:{job_id}"
    return caller


def any_worker(request: Request) -> WorkerPrincipal:
    """A dependency of worker routes that are not under a job: the worker of some job."""
    caller = _caller(request)
    if not isinstance(caller, WorkerPrincipal):
        raise ProblemError("forbidden", "only a worker may ask this")
    request.state.actor = f"worker:{caller.job_id}"
    return caller


def _caller(request: Request) -> Principal | WorkerPrincipal:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated()
    caller = services(request).directory.authenticate(token.strip())
    request.state.caller = caller
    return caller
