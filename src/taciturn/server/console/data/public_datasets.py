"""Public data sets: text without a unit or a budget, listed, declared, removed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from taciturn.server.console.forms import built
from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import Role
from taciturn.wire.public_datasets import NewPublicDataset
from taciturn.wire.values import Name

router = APIRouter(prefix="/public-datasets", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.PUBLIC_DATASETS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.PUBLIC_DATASETS_WRITE))]
_Line = Annotated[str, Form(max_length=200)]


@router.get("")
def read_public_datasets(
    request: Request, caller: Reader, services: Svc, paging: PageQuery
) -> Response:
    """Show what is declared public, and to owners and administrators the form that does it."""
    writes = Action.PUBLIC_DATASETS_WRITE in caller.actions
    return page(
        request,
        "public_datasets.html",
        caller,
        items=services.public_datasets.page(caller, paging),
        prefixes=services.registrations.prefixes(caller) if writes else (),
    )


@router.get("/{name}")
def read_public_dataset(request: Request, caller: Reader, services: Svc, name: Name) -> Response:
    """Show one of them."""
    item = services.public_datasets.read(name, caller)
    removes = Action.PUBLIC_DATASETS_WRITE in caller.actions and (
        caller.has(Role.ADMIN) or item.declared_by == caller.name
    )
    return page(request, "public_dataset.html", caller, item=item, removes=removes)


@router.post("")
def register_public_dataset(
    caller: Writer,
    services: Svc,
    name: Annotated[str, Form(max_length=64)],
    source: Annotated[str, Form(max_length=2000)],
    licence: _Line,
    origin: _Line,
    text_field: _Line = "",
    description: _Line = "",
) -> Response:
    """Declare text public."""
    new = built(
        NewPublicDataset,
        name=name.strip(),
        source=source.strip(),
        licence=licence.strip(),
        origin=origin.strip(),
        text_field=text_field.strip(),
        description=description.strip(),
    )
    services.public_datasets.register(new, caller)
    return go_to(f"/public-datasets/{new.name}")


@router.post("/{name}/removals")
def remove_public_dataset(caller: Writer, services: Svc, name: Name) -> Response:
    """Let no new job use it."""
    services.public_datasets.remove(name, caller)
    return go_to("/public-datasets")
