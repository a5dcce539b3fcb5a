"""People: administrators let them in, change what they may do, and lock them out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import NewUser, PasswordLink, UserChange, UserName, UserView
from taciturn.wire.values import Page

router = APIRouter(prefix="/users", tags=["identity"], route_class=Route)

READ = Depends(Requires(Action.USERS_READ))
Writer = Annotated[Principal, Depends(Requires(Action.USERS_WRITE))]


@router.get("", dependencies=[READ])
def list_users(services: Svc, page: PageQuery) -> Page[UserView]:
    """All users, by name."""
    return services.users.list(page)


@router.post("", status_code=201)
def create_user(caller: Writer, services: Svc, new: NewUser) -> UserView:
    """Let a person in: by OIDC, or with a password that they set through a link."""
    return services.users.create(new)


@router.get("/{name}", dependencies=[READ])
def read_user(services: Svc, name: UserName) -> UserView:
    """One person."""
    return services.users.get(name)


@router.patch("/{name}")
def change_user(caller: Writer, services: Svc, name: UserName, change: UserChange) -> UserView:
    """Change somebody else's roles, groups or state; whoever is disabled is logged out at once."""
    return services.users.change(caller, name, change)


@router.post("/{name}/password-links", status_code=201)
def make_password_link(caller: Writer, services: Svc, name: UserName) -> PasswordLink:
    """A link, shown this once, through which the person sets their own password. Until they have
    done so nothing changes for them; links that were made before are void."""
    return services.links.make(caller, name)
