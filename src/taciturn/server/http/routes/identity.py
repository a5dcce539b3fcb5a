"""The caller: who they are to the gateway."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn._version import __version__
from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.timestamps import moment
from taciturn.wire.identity import Self

router = APIRouter(tags=["identity"], route_class=Route)


@router.get("/self")
def read_self(
    caller: Annotated[Principal, Depends(Requires(Action.SELF_READ))], services: Svc
) -> Self:
    """The person whom the token stands for, what it may do, and who made links for their
    password."""
    changed_at_ms, links = services.links.history(caller)
    return Self(
        name=caller.name,
        display_name=caller.display_name,
        roles=tuple(sorted(caller.roles)),
        groups=tuple(sorted(caller.groups)),
        actions=tuple(sorted(caller.actions)),
        expires_at=moment(caller.expires_at_ms),
        access_changed_at=moment(changed_at_ms),
        password_links=links,
        server_version=__version__,
    )
