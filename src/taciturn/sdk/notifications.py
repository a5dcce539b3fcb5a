"""Notifications: what the caller is told, by e-mail and webhook, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.sdk.listing import Listing
from taciturn.sdk.requests import body_of, request
from taciturn.sdk.transport import Transport
from taciturn.wire.notifications import (
    DeliveryView,
    EndpointSecret,
    NewAddress,
    NewEndpoint,
    NotificationSettings,
    Preferences,
)


@dataclass(frozen=True, slots=True)
class NotificationRequests:
    """Requests about one's own notifications, `client.notifications`."""

    transport: Transport

    def settings(self) -> NotificationSettings:
        """Choices of what is told, and where."""
        return self.transport.get("notifications", NotificationSettings)

    def choose(self, kind: str, *, email: bool, webhook: bool) -> NotificationSettings:
        """Choose how to be told of a kind of event, such as `approval.asked`."""
        choice = {"kind": kind, "email": email, "webhook": webhook}
        choices = request(Preferences, preferences=(choice,))
        response = self.transport.send("PUT", "notifications/preferences", body=choices)
        return self.transport.read(NotificationSettings, response)

    def set_address(self, address: str) -> NotificationSettings:
        """Have a code sent to an e-mail address; give it to `confirm_address`."""
        new = request(NewAddress, address=address)
        response = self.transport.send("PUT", "notifications/address", body=new)
        return self.transport.read(NotificationSettings, response)

    def confirm_address(self, code: str) -> NotificationSettings:
        """Show the code that came by e-mail."""
        path = "notifications/address/confirmations"
        response = self.transport.send("POST", path, body={"code": code})
        return self.transport.read(NotificationSettings, response)

    def remove_address(self) -> None:
        """Get no e-mail any more."""
        self.transport.send("DELETE", "notifications/address")

    def add_endpoint(self, name: str, url: str, *, form: str = "json") -> EndpointSecret:
        """Add a receiver of webhooks; its secret is shown this once.

        Args:
            form: `json`, which Slack takes too, or `teams`.
        """
        new = request(NewEndpoint, name=name, url=url, form=form)
        response = self.transport.send("POST", "notifications/endpoints", body=body_of(new))
        return self.transport.read(EndpointSecret, response)

    def rotate_secret(self, id: str) -> EndpointSecret:
        """Give a receiver another secret; the one before signs too for a day."""
        response = self.transport.send("POST", f"notifications/endpoints/{id}/secrets")
        return self.transport.read(EndpointSecret, response)

    def remove_endpoint(self, id: str) -> None:
        """Send nothing there any more."""
        self.transport.send("DELETE", f"notifications/endpoints/{id}")

    def send_test(self, endpoint: str | None = None) -> None:
        """Send oneself a message, to a receiver or by e-mail."""
        self.transport.send("POST", "notifications/tests", body={"endpoint": endpoint})

    def deliveries(self) -> Listing[DeliveryView]:
        """Messages, newest first, and what became of each."""
        return Listing(self.transport.pages("notifications/deliveries", DeliveryView))
