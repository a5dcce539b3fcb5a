"""People: who may come in, as what, and where their data may be."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.console.forms import checked, lines, words
from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import PERMISSIONS, Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.identity import NewUser, Role, UserChange

router = APIRouter(prefix="/people", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.USERS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.USERS_WRITE))]

ROLES = {
    Role.OWNER: "registers data, sets its terms, gives grants, approves",
    Role.PRACTITIONER: "plans and runs fits on data that an owner has granted",
    Role.AUDITOR: "reads ledger, audit log and certificates, and has no other role",
    Role.ADMIN: "lets people in and runs the gateway, and sees no dataset",
}

_Name = Annotated[str, Form(max_length=200)]
_Groups = Annotated[str, Form(max_length=4000)]
_Sources = Annotated[str, Form(max_length=400_000)]
_Roles = Annotated[list[str] | None, Form(max_length=8)]


@router.get("")
def read_people(
    request: Request,
    caller: Reader,
    services: Svc,
    paging: PageQuery,
    text: Annotated[str, Query(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
) -> Response:
    """Show everybody who may come in, and a form that lets another person in."""
    items = services.users.list(paging, text.strip() or None)
    first = paging.after is None
    return page(request, "people.html", caller, items=items, text=text, first=first, roles=ROLES)


@router.post("")
def let_in(
    caller: Writer,
    services: Svc,
    name: _Name,
    display_name: _Name = "",
    role: _Roles = None,
    groups: _Groups = "",
    sources: _Sources = "",
) -> Response:
    """Let a person in; a link for their password is made on their page."""
    fields = _fields(display_name, role, groups, sources)
    services.users.create(checked(NewUser, name=name.strip(), **fields))
    return go_to(f"/people/{quote(name.strip(), safe='')}")


@router.get("/{name}")
def read_person(request: Request, caller: Reader, services: Svc, name: str) -> Response:
    """Show one person, what their roles allow, and the links that were made for them."""
    person = services.users.get(name)
    return page(
        request,
        "person.html",
        caller,
        person=person,
        links=services.links.made_for(name),
        roles=ROLES,
        allowed=sorted(
            action for action, roles in PERMISSIONS.items() if roles & frozenset(person.roles)
        ),
        link_hours=services.gateway.settings.password_link_s / 3600,
        now=services.gateway.clock(),
    )


@router.post("/{name}")
def change_person(
    caller: Writer,
    services: Svc,
    name: str,
    display_name: _Name = "",
    role: _Roles = None,
    groups: _Groups = "",
    sources: _Sources = "",
) -> Response:
    """Change somebody else's name to show, roles, groups and sources; of oneself the name alone."""
    fields = _fields(display_name, role, groups, sources)
    if name == caller.name:
        fields = {"display_name": fields["display_name"]}
    services.users.change(caller, name, checked(UserChange, **fields))
    return go_to(f"/people/{quote(name, safe='')}")


@router.post("/{name}/state")
def set_state(
    caller: Writer, services: Svc, name: str, disabled: Annotated[bool, Form()]
) -> Response:
    """Lock somebody out, or let them in again."""
    services.users.change(caller, name, checked(UserChange, disabled=disabled))
    return go_to(f"/people/{quote(name, safe='')}")


@router.post("/{name}/password-links")
def make_link(request: Request, caller: Writer, services: Svc, name: str) -> Response:
    """Make a link through which the person sets their password, shown this once."""
    return page(request, "password_link.html", caller, link=services.links.make(caller, name))


def _fields(display_name: str, role: list[str] | None, groups: str, sources: str) -> dict[str, Any]:
    return {
        "display_name": display_name.strip() or None,
        "roles": tuple(role or ()),
        "groups": words(groups),
        "sources": lines(sources),
    }
