"""The gateway as a web application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from taciturn._version import __version__
from taciturn.errors import TaciturnError
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.console.rendering import problem_page, wants_page
from taciturn.server.console.routers import ROUTERS as PAGES
from taciturn.server.context import Gateway
from taciturn.server.http.connections import ANNOUNCE_STOP
from taciturn.server.http.middleware import Observing
from taciturn.server.http.openapi import document
from taciturn.server.http.routes import OPENAI_ROUTERS, ROUTERS, metrics, pages
from taciturn.server.launchers.base import Launcher
from taciturn.server.problems import MEDIA_TYPE, ProblemError, from_error
from taciturn.server.services import Services


def create_app(
    gateway: Gateway,
    *,
    launcher: Launcher | None = None,
    trials: SqlSandbox | None = None,
) -> FastAPI:
    """The application on an open gateway; its background tasks run as long as its lifespan.

    Args:
        launcher, trials: instead of those that the settings name; see `Services.of`.
    """
    app = FastAPI(
        title="taciturn",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would lead wherever the request's Host says
        lifespan=_lifespan,
    )
    services = Services.of(gateway, launcher=launcher, trials=trials)
    app.state.services = services
    app.add_middleware(
        Observing,
        gateway=gateway,
        audit_log=services.audit_log,
        metrics=services.metrics,
        strangers=services.strangers,
        refuse=_refusal,
    )
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(TaciturnError, _own_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.router.routes.extend(_routes())
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """All routes, for every application of this process.

    FastAPI reads the signatures of a router's functions when that is first asked in an application,
    which takes 0.4 s for all of them. Nothing in a route is of one application: what it works on
    comes with the request.
    """
    router = APIRouter()
    for api in ROUTERS:
        router.include_router(api, prefix="/v1")
    for api in OPENAI_ROUTERS:
        router.include_router(api, prefix="/openai/v1")
    router.include_router(metrics.router)
    router.include_router(pages.router)
    for page in PAGES:
        router.include_router(page, include_in_schema=False)
    return tuple(router.routes)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    services: Services = app.state.services
    background = services.background
    await run_in_threadpool(services.attend)
    await run_in_threadpool(background.start)
    try:
        yield {ANNOUNCE_STOP: background.announce_stop}
    finally:
        await run_in_threadpool(background.stop)


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    body = error.problem(request.url.path)
    request.state.code = error.code
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=body.status,
        media_type=MEDIA_TYPE,
        headers=error.headers,
    )


def _own_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TaciturnError)
    problem = from_error(error)
    if problem is None:
        raise error  # `Observing` makes an incident of it
    return _problem(request, problem)


def _invalid(request: Request, error: Exception) -> Response:
    """Say which field is wrong and why, without the values: they may be secrets."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return _problem(request, ProblemError("invalid", f"{where}: {message}"))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code)
    headers = dict(error.headers or {})
    detail = "there is nothing at this address" if code == "not_found" else str(error.detail)
    problem = ProblemError(code or "invalid", detail, headers=headers)
    return _refusal(request, problem)


def _refusal(request: Request, problem: ProblemError) -> Response:
    return problem_page(request, problem) if wants_page(request) else _problem(request, problem)
