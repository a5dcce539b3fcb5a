"""Files and text that workers send, and files and jobs that they fetch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from taciturn.server.http.access import Svc, any_worker, worker
from taciturn.server.http.blocking import Route
from taciturn.server.http.routes.models import BINARY, Range
from taciturn.server.http.sending import bounds, file_response
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.problems import ProblemError
from taciturn.wire.worker import LEASE_HEADER, NextJob, TextChunk

router = APIRouter(tags=["worker"], route_class=Route)

Worker = Annotated[WorkerPrincipal, Depends(worker)]
AnyWorker = Annotated[WorkerPrincipal, Depends(any_worker)]
Lease = Annotated[int, Header(alias=LEASE_HEADER, ge=0, le=2**53)]


@router.put(
    "/worker/jobs/{job_id}/files/{name}",
    status_code=204,
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
            "required": True,
        }
    },
)
async def put_file(
    job_id: str, name: str, request: Request, caller: Worker, lease: Lease, services: Svc
) -> None:
    """Hand a file in; refused unless name and content are those of a file of this kind of job."""
    artifacts = services.artifacts
    limit_bytes = await to_thread.run_sync(artifacts.limit_bytes, caller, lease, name)
    folder = services.gateway.settings.data_dir / "incoming"
    path = await to_thread.run_sync(_new_file, folder)
    try:
        await _save(request.stream(), path, limit_bytes)
        await to_thread.run_sync(artifacts.keep, caller, lease, name, path)
    finally:
        path.unlink(missing_ok=True)


@router.post("/worker/jobs/{job_id}/text", status_code=204)
async def post_text(
    job_id: str, chunk: TextChunk, caller: Worker, lease: Lease, services: Svc
) -> None:
    """A piece of a streamed sample."""
    await to_thread.run_sync(services.text_streams.add, caller, lease, chunk)


@router.post("/worker/jobs/{job_id}/next")
async def next_job(
    job_id: str, request: Request, caller: Worker, lease: Lease, services: Svc
) -> NextJob:
    """Another sample of the same model, with a token of its own. Waits as long as the gateway
    wants idle workers to; null: end."""
    model_id, handle = await to_thread.run_sync(services.model_workers.of_last, caller, lease)
    timeout_s = services.gateway.settings.idle_worker_s
    offer = services.warm_workers.offer(model_id, handle, timeout_s, request.is_disconnected)
    return await offer or NextJob()


@router.get(
    "/worker/models/{model_id}/files/{name}",
    response_class=Response,
    responses=BINARY,
)
def read_model_file(
    model_id: str,
    name: str,
    caller: AnyWorker,
    lease: Lease,
    services: Svc,
    range: Range = None,
) -> Response:
    """A file of the fitted model that the worker's job needs; of no other model."""
    byte_range = bounds(range)
    job_id = services.model_workers.files_of(caller, lease, model_id)
    download = services.artifacts.open(job_id, name, byte_range)
    return file_response(download, None, part=byte_range != (None, None))


def _new_file(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    return Path(name)


async def _save(pieces: AsyncIterator[bytes], path: Path, limit_bytes: int) -> None:
    """Write a body as it comes, no more of it than it may have."""
    size_bytes = 0
    async with await anyio.open_file(path, "wb") as file:
        async for piece in pieces:
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise ProblemError("too_large", f"this file may have {limit_bytes} bytes")
            await file.write(piece)
