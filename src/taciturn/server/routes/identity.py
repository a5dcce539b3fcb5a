"""The caller: who they are to the gateway."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn._version import __version__
from taciturn.server.access import Requires
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.wire.identity import Self

router = APIRouter(tags=["identity"])


@router.get("/self")
async def read_self(caller: Annotated[Principal, Depends(Requires(Action.SELF_READ))]) -> Self:
    """Who the token stands for, and what it may do."""
    return Self(
        name=caller.name,
        display_name=caller.display_name,
        roles=tuple(sorted(caller.roles)),
        groups=tuple(sorted(caller.groups)),
        actions=tuple(sorted(caller.actions)),
        expires_at=datetime.fromtimestamp(caller.expires_at_ms / 1000, UTC),
        server_version=__version__,
    )
