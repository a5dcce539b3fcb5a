"""Pages about one's own notifications."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response
from pydantic import ValidationError

from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.wire.notifications import (
    NewAddress,
    NewEndpoint,
    NotificationKind,
    Preference,
    Preferences,
)

PAGE = "/account/notifications"
router = APIRouter(prefix=PAGE, route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.NOTIFICATIONS_MANAGE))]

_KIND = NotificationKind
KINDS = (
    (_KIND.APPROVAL_ASKED, "An approval waits for me", Action.APPROVALS_DECIDE),
    (_KIND.APPROVAL_DECIDED, "An approval on my job or data is decided", Action.APPROVALS_READ),
    (_KIND.JOB_FAILED, "A job of mine, or on my data, has failed", Action.JOBS_READ),
    (_KIND.JOB_SUCCEEDED, "A job of mine is done", Action.JOBS_CREATE),
    (_KIND.BUDGET_THRESHOLD, "50, 80 or 95 % of a budget of mine is spent", Action.POLICIES_WRITE),
    (
        _KIND.GRANT_ENDS,
        "A grant of mine, or on my data, ends in a week or a day",
        Action.GRANTS_READ,
    ),
    (_KIND.AUDIT_FINDING, "An audit finds more than a model promises", Action.JOBS_READ),
    (_KIND.LAUNCHER_AWAY, "The launcher does not answer", Action.JOBS_OPERATE),
)
"""Kinds in words, and the permission without which nobody is told of them."""
_TITLES = {
    **{kind.value: title for kind, title, _ in KINDS},
    "test": "A message to try it out",
    "address.confirmation": "A code for an address",
}


@router.get("")
def read_notifications(
    request: Request, caller: Reader, services: Svc, paging: PageQuery
) -> Response:
    """Show what one is told, where, and what became of it."""
    own = services.preferences.view(caller)
    return page(
        request,
        "notifications.html",
        caller,
        own=own,
        choices={choice.kind: choice for choice in own.preferences},
        kinds=[(kind, title) for kind, title, action in KINDS if action in caller.actions],
        titles=_TITLES,
        deliveries=services.preferences.deliveries(caller, paging),
    )


@router.post("/preferences")
def choose(
    caller: Reader,
    services: Svc,
    email: Annotated[list[NotificationKind] | None, Form()] = None,
    webhook: Annotated[list[NotificationKind] | None, Form()] = None,
) -> Response:
    """Keep the grid: what is ticked is told. Kinds that are not shown stay as they are."""
    visible_kinds = [kind for kind, _, action in KINDS if action in caller.actions]
    choices = tuple(
        Preference(kind=kind, email=kind in (email or ()), webhook=kind in (webhook or ()))
        for kind in visible_kinds
    )
    services.preferences.choose(caller, Preferences(preferences=choices))
    return go_to(PAGE)


@router.post("/address")
def change_address(
    caller: Reader, services: Svc, address: Annotated[str, Form(max_length=300)]
) -> Response:
    """Have a code sent to an address."""
    try:
        new = NewAddress(address=address.strip())
    except ValidationError:
        raise ProblemError(
            "invalid", "address: write it as in ada@hospital.example, 254 characters at most"
        ) from None
    services.preferences.set_address(caller, new.address)
    return go_to(PAGE)


@router.post("/address/confirmations")
def confirm_address(
    caller: Reader, services: Svc, code: Annotated[str, Form(max_length=40)]
) -> Response:
    """Take the code that was sent."""
    services.preferences.confirm(caller, code)
    return go_to(PAGE)


@router.post("/address/removals")
def remove_address(caller: Reader, services: Svc) -> Response:
    """Send no e-mail any more."""
    services.preferences.forget_address(caller)
    return go_to(PAGE)


@router.post("/endpoints")
def add_endpoint(
    request: Request,
    caller: Reader,
    services: Svc,
    name: Annotated[str, Form(max_length=200)],
    url: Annotated[str, Form(max_length=2000)],
    layout: Annotated[str, Form(max_length=20)] = "json",
) -> Response:
    """Add a receiver, and show its secret this once. A field called `form` would hide the form from
    htmx, which asks for `element.form`."""
    try:
        new = NewEndpoint.model_validate({"name": name, "url": url.strip(), "form": layout})
    except ValidationError:
        raise ProblemError(
            "invalid", "name: one line of 1 to 200 characters; form: json or teams"
        ) from None
    endpoint = services.preferences.add_endpoint(caller, new)
    return page(request, "notification_secret.html", caller, endpoint=endpoint)


@router.post("/endpoints/{endpoint_id}/secrets")
def rotate_secret(request: Request, caller: Reader, services: Svc, endpoint_id: str) -> Response:
    """Give a receiver another secret, and show it this once."""
    endpoint = services.preferences.rotate(caller, endpoint_id)
    return page(request, "notification_secret.html", caller, endpoint=endpoint)


@router.post("/endpoints/{endpoint_id}/removals")
def remove_endpoint(caller: Reader, services: Svc, endpoint_id: str) -> Response:
    """Send nothing there any more."""
    services.preferences.remove_endpoint(caller, endpoint_id)
    return go_to(PAGE)


@router.post("/tests")
def send_test(
    caller: Reader, services: Svc, endpoint: Annotated[str | None, Form(max_length=40)] = None
) -> Response:
    """Send oneself a message, to a receiver or by e-mail."""
    services.preferences.test(caller, endpoint or None)
    return go_to(f"{PAGE}#sent")
