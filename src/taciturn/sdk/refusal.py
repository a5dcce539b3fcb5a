"""Exceptions for answers that are no success: the code decides, then the status."""

from __future__ import annotations

from types import MappingProxyType

import httpx
from pydantic import ValidationError

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
from taciturn.wire.values import Problem

OF_CODE = MappingProxyType({"budget_exceeded": RemoteBudgetError})
OF_STATUS: MappingProxyType[int, type[GatewayError]] = MappingProxyType(
    {
        401: AuthenticationError,
        403: PermissionDeniedError,
        404: NotThereError,
        409: ConflictError,
        410: ConflictError,
        413: InvalidRequestError,
        415: InvalidRequestError,
        422: InvalidRequestError,
        428: InvalidRequestError,
        429: TooManyRequestsError,
        502: UnavailableError,
        503: UnavailableError,
        504: UnavailableError,
    }
)


def refusal(response: httpx.Response) -> GatewayError:
    """The exception that an answer with a status of 400 or more is."""
    problem = _problem(response)
    if problem is None:
        kind = OF_STATUS.get(response.status_code, GatewayError)
        return kind(
            f"{response.request.url.host} answered {response.status_code} "
            f"{response.reason_phrase} and no reason; is that the address of a gateway?",
            status=response.status_code,
        )
    kind = OF_CODE.get(problem.code) or OF_STATUS.get(problem.status, GatewayError)
    return kind(problem.detail, code=problem.code, status=problem.status, incident=problem.incident)


def _problem(response: httpx.Response) -> Problem | None:
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None
