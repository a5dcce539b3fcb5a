"""Notifications of oneself: what one is told, where, and what was sent."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.notifications import (
    Confirmation,
    DeliveryView,
    EndpointSecret,
    NewAddress,
    NewEndpoint,
    NotificationSettings,
    Preferences,
    TestRequest,
)
from taciturn.wire.values import Page

router = APIRouter(prefix="/notifications", tags=["identity"], route_class=Route)

Reader = Annotated[Principal, Depends(Requires(Action.NOTIFICATIONS_MANAGE))]
EndpointId = Annotated[str, Path(pattern=r"^whk_[0-9a-z]{20}$")]


@router.get("")
def read_notifications(caller: Reader, services: Svc) -> NotificationSettings:
    """Choices of what one is told, and where."""
    return services.preferences.view(caller)


@router.put("/preferences")
def change_preferences(caller: Reader, services: Svc, choices: Preferences) -> NotificationSettings:
    """Choose for kinds of events; those that are left out stay as they are."""
    return services.preferences.choose(caller, choices)


@router.put("/address")
def change_address(caller: Reader, services: Svc, new: NewAddress) -> NotificationSettings:
    """Have a code sent to an address. Mail goes there once the code was entered."""
    return services.preferences.set_address(caller, new.address)


@router.post("/address/confirmations")
def confirm_address(
    caller: Reader, services: Svc, confirmation: Confirmation
) -> NotificationSettings:
    """Enter the code that was sent."""
    return services.preferences.confirm(caller, confirmation.code.get_secret_value())


@router.delete("/address", status_code=204)
def remove_address(caller: Reader, services: Svc) -> None:
    """Get no e-mail any more."""
    services.preferences.forget_address(caller)


@router.post("/endpoints", status_code=201)
def add_endpoint(caller: Reader, services: Svc, new: NewEndpoint) -> EndpointSecret:
    """Add a receiver of webhooks. Its secret is shown this once."""
    return services.preferences.add_endpoint(caller, new)


@router.post("/endpoints/{endpoint_id}/secrets", status_code=201)
def rotate_secret(caller: Reader, services: Svc, endpoint_id: EndpointId) -> EndpointSecret:
    """Give a receiver another secret, shown this once; the one before signs too for a day."""
    return services.preferences.rotate(caller, endpoint_id)


@router.delete("/endpoints/{endpoint_id}", status_code=204)
def remove_endpoint(caller: Reader, services: Svc, endpoint_id: EndpointId) -> None:
    """Send nothing there any more."""
    services.preferences.remove_endpoint(caller, endpoint_id)


@router.post("/tests", status_code=202)
def send_test(caller: Reader, services: Svc, test: TestRequest) -> None:
    """Send oneself a message, to a receiver or by e-mail."""
    services.preferences.test(caller, test.endpoint)


@router.get("/deliveries")
def list_deliveries(caller: Reader, services: Svc, page: PageQuery) -> Page[DeliveryView]:
    """Messages to oneself, newest first, and what became of each."""
    return services.preferences.deliveries(caller, page)
