"""Results of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.http.routes.models import BINARY, Range
from taciturn.server.http.sending import bounds, file_response, policy_header
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.wire.results import JobResult

router = APIRouter(tags=["jobs"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.JOBS_READ))]


@router.get("/jobs/{job_id}/result", response_model=JobResult)
def read_result(job_id: str, caller: Reader, services: Svc, response: Response) -> JobResult:
    """The result of a job that has succeeded: of its own kind, with its policy in one line."""
    result = services.results.get(caller, job_id)
    response.headers.update(policy_header(result.policy))
    return result


@router.get("/jobs/{job_id}/files/{name}", response_class=Response, responses=BINARY)
def read_result_file(
    job_id: str, name: str, caller: Reader, services: Svc, range: Range = None
) -> Response:
    """A file of the result."""
    byte_range = bounds(range)
    download, policy = services.results.open(caller, job_id, name, byte_range)
    return file_response(download, policy, part=byte_range != (None, None))
