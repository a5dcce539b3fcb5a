"""OpenAI's files: the gateway's datasets, for OpenAI's clients. No byte of them is given back."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from taciturn.server.fine_tuning.answers import file_answer, listed
from taciturn.server.fine_tuning.requests import refusal
from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.routes.fine_tuning.jobs import After, Limit
from taciturn.server.http.routes.openai import OpenAIRoute
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.wire.fine_tuning import NewUpload

router = APIRouter(tags=["OpenAI"], prefix="/files", route_class=OpenAIRoute)
Reader = Annotated[Principal, Depends(Requires(Action.DATASETS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.DATASETS_WRITE))]

_NO_UNIT = (
    "is required: the column, or row-wise SQL, that names whose records are protected together, "
    'such as a patient or a customer. "one record" protects each record by itself, which is right '
    "only where nobody has two"
)
_REMEDIES = {
    "privacy_unit": _NO_UNIT,
    "namespace": "is required: whose budget protects the file; with epsilon and delta a new one "
    "is opened",
    "units": "is required: how many privacy units there are, as you declare it to be public",
    "purpose": 'is required and has to be "fine-tune": files are for nothing else here',
}
_FIELDS = {
    name: {"type": "string"} for name in (*_REMEDIES, "columns", "epsilon", "delta", "description")
}
_BODY = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}, **_FIELDS},
                    "required": ["file", *_REMEDIES],
                }
            }
        },
        "required": True,
    }
}


@router.post("", openapi_extra=_BODY)
async def upload_file(request: Request, caller: Writer, services: Svc) -> dict[str, Any]:
    """Put JSON lines of chats, completions or preferences into your own store, and register them
    as a dataset. The fields say what any dataset's registration says: namespace, unit, units."""
    await to_thread.run_sync(services.uploads.store_of, caller)
    try:
        async with request.form(max_files=1, max_fields=20, max_part_size=20_000) as form:
            new, file = _new_upload(form), form.get("file")
            if not isinstance(file, UploadFile):
                raise refusal("file", "is required: JSON lines, as a part with a file's name")
            dataset = await to_thread.run_sync(services.uploads.keep, caller, new, file.file)
    except ClientDisconnect:
        raise ProblemError("malformed", "the upload broke off; nothing of it was kept") from None
    return file_answer(dataset)


@router.get("")
def list_files(
    caller: Reader,
    services: Svc,
    after: After = None,
    limit: Limit = 100,
    purpose: Annotated[str | None, Query(max_length=40)] = None,
    order: Annotated[str | None, Query(max_length=10)] = None,
) -> dict[str, Any]:
    """Datasets that you may use, own or audit, by name."""
    if order not in (None, "asc"):
        raise refusal("order", "files are listed by name; leave it out")
    if purpose not in (None, "", "fine-tune"):
        return listed([], False)
    paging = Paging(limit, after)
    datasets = services.datasets.page(caller, paging.name(), paging.fetch)
    return listed([file_answer(dataset) for dataset in datasets[:limit]], len(datasets) > limit)


@router.get("/{file_id}")
def read_file(file_id: str, caller: Reader, services: Svc) -> dict[str, Any]:
    """A dataset: whether it is ready, its unit and its policy."""
    return file_answer(services.datasets.read(file_id, caller))


@router.get("/{file_id}/content")
def read_file_content(file_id: str, caller: Reader, services: Svc) -> None:
    """Refuse: rows never leave."""
    services.datasets.read(file_id, caller)
    raise ProblemError(
        "policy_refused",
        "private rows never leave, not even to who has uploaded them; GET "
        f"/v1/datasets/{file_id}/preview shows rows in their shape",
    )


@router.delete("/{file_id}")
def delete_file(file_id: str, caller: Writer, services: Svc) -> dict[str, Any]:
    """Let nobody use a dataset any more; what was uploaded is removed from its owner's store. What
    was spent stays spent."""
    services.uploads.remove(caller, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _new_upload(form: FormData) -> NewUpload:
    """Return the fields beside the file; raises ProblemError with the one that is wrong."""
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    values: dict[str, Any] = {name: value for name, value in fields.items() if value != ""}
    if "columns" in values:
        values["columns"] = [name.strip() for name in fields["columns"].split(",")]
    for name in _REMEDIES:
        if name not in values:
            raise refusal(name, _REMEDIES[name])
    try:
        return NewUpload.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "file"
        if first["type"] == "extra_forbidden":
            message = f"there is no such field; there are file, {', '.join(_FIELDS)}"
        else:
            message = _REMEDIES[name] if name == "purpose" else first["msg"]
        raise refusal(name, message) from None
