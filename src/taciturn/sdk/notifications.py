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
    """Requests about one's own notifications, `client.notifications`.

    Attributes:
        transport: requests to the gateway.

    Raises:
        NotFoundError: there is no such receiver of one's own.
        InvalidRequestError: an address, a code or a kind of event is not one.

    Examples:
        >>> client.notifications.settings().mail
        True
    """

    transport: Transport

    def settings(self) -> NotificationSettings:
        """Choices of what is told, and where.

        Examples:
            >>> client.notifications.settings().endpoints
            ()
        """
        return self.transport.get("notifications", NotificationSettings)

    def choose(self, kind: str, *, email: bool, webhook: bool) -> NotificationSettings:
        """Choose how to be told of a kind of event.

        Args:
            kind: such as `approval.asked`, `job.failed` or `budget.threshold`.
            email: to one's confirmed address.
            webhook: to all of one's receivers.

        Examples:
            >>> chosen = client.notifications.choose("job.failed", email=False, webhook=True)
            >>> chosen.preferences[0].webhook
            True
        """
        choice = {"kind": kind, "email": email, "webhook": webhook}
        choices = request(Preferences, preferences=(choice,))
        response = self.transport.send("PUT", "notifications/preferences", body=choices)
        return self.transport.read(NotificationSettings, response)

    def set_address(self, address: str) -> NotificationSettings:
        """Have a code sent to an e-mail address; give it to `confirm_address`.

        Args:
            address: it counts once its code was entered.

        Examples:
            >>> client.notifications.set_address("ada@hospital.example").pending_address
            'ada@hospital.example'
        """
        new = request(NewAddress, address=address)
        response = self.transport.send("PUT", "notifications/address", body=new)
        return self.transport.read(NotificationSettings, response)

    def confirm_address(self, code: str) -> NotificationSettings:
        """Show the code that came by e-mail.

        Args:
            code: as the message has it.

        Examples:
            >>> client.notifications.confirm_address("K7QF-2M9X-WC4T").address
            'ada@hospital.example'
        """
        path = "notifications/address/confirmations"
        response = self.transport.send("POST", path, body={"code": code})
        return self.transport.read(NotificationSettings, response)

    def remove_address(self) -> None:
        """Get no e-mail any more.

        Examples:
            >>> client.notifications.remove_address()
        """
        self.transport.send("DELETE", "notifications/address")

    def add_endpoint(self, name: str, url: str, *, form: str = "json") -> EndpointSecret:
        """Add a receiver of webhooks; its secret is shown this once.

        Args:
            name: yours for it.
            url: public, https.
            form: `json`, which Slack takes too, or `teams`.

        Examples:
            >>> receiver = client.notifications.add_endpoint("team", "https://hooks.example.org/1")
            >>> receiver.host, receiver.secret
            ('hooks.example.org', 'whsec_...')
        """
        new = request(NewEndpoint, name=name, url=url, form=form)
        response = self.transport.send("POST", "notifications/endpoints", body=body_of(new))
        return self.transport.read(EndpointSecret, response)

    def rotate_secret(self, id: str) -> EndpointSecret:
        """Give a receiver another secret; the one before signs too for a day.

        Args:
            id: the receiver's.

        Examples:
            >>> client.notifications.rotate_secret("end_00000000000000000001").secret
            'whsec_...'
        """
        response = self.transport.send("POST", f"notifications/endpoints/{id}/secrets")
        return self.transport.read(EndpointSecret, response)

    def remove_endpoint(self, id: str) -> None:
        """Send nothing there any more.

        Args:
            id: the receiver's.

        Examples:
            >>> client.notifications.remove_endpoint("end_00000000000000000001")
        """
        self.transport.send("DELETE", f"notifications/endpoints/{id}")

    def send_test(self, endpoint: str | None = None) -> None:
        """Send oneself a message, to a receiver or by e-mail.

        Args:
            endpoint: id of a receiver; without it, one's e-mail address.

        Examples:
            >>> client.notifications.send_test("end_00000000000000000001")
        """
        self.transport.send("POST", "notifications/tests", body={"endpoint": endpoint})

    def deliveries(self) -> Listing[DeliveryView]:
        """Messages, newest first, and what became of each.

        Examples:
            >>> [(message.kind, message.state) for message in client.notifications.deliveries()]
            [('job.failed', 'sent')]
        """
        return Listing(self.transport.pages("notifications/deliveries", DeliveryView))
