"""Notifications: what people are told, where, and what became of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from taciturn.wire.values import Identifier, Line, Moment, WireValue

Address = Annotated[
    str,
    Field(
        max_length=254,
        pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})+$",
        examples=["ada@hospital.example"],
    ),
]
Form = Literal["json", "teams"]


class NotificationKind(StrEnum):
    """Kind of event that people are told of."""

    APPROVAL_ASKED = "approval.asked"
    APPROVAL_DECIDED = "approval.decided"
    JOB_FAILED = "job.failed"
    JOB_SUCCEEDED = "job.succeeded"
    BUDGET_THRESHOLD = "budget.threshold"
    GRANT_ENDS = "grant.ends"
    AUDIT_FINDING = "audit.finding"
    LAUNCHER_AWAY = "launcher.away"


class Preference(WireValue):
    """Ways in which the caller is told of one kind of event."""

    kind: NotificationKind
    email: bool
    webhook: bool


class Preferences(WireValue):
    """Preferences to be changed; kinds that are left out stay as they are."""

    preferences: Annotated[tuple[Preference, ...], Field(max_length=len(NotificationKind))]


class NewAddress(WireValue):
    """An e-mail address for oneself. It counts once the code that is sent there was entered."""

    address: Address


class Confirmation(WireValue):
    """The code that was sent to an e-mail address."""

    code: Annotated[SecretStr, Field(max_length=40, examples=["K7QF-2M9X-WC4T"])]


class NewEndpoint(WireValue):
    """A receiver of webhooks. `json` is our own form, with a `text` as Slack shows it; `teams` is
    a card as workflows of Microsoft Teams take it."""

    name: Line
    url: Annotated[str, Field(max_length=2000, examples=["https://hooks.example.org/services/1"])]
    form: Form = "json"


class EndpointView(WireValue):
    """A receiver, without its secret; of its address the host alone, for the rest may be one."""

    id: Identifier
    name: str
    host: str
    form: Form
    created_at: Moment
    rotated_at: Moment | None = None


class EndpointSecret(EndpointView):
    """A receiver whose secret was just made, and is shown this once. It signs as Standard Webhooks
    has it; the one before signs too for a day."""

    secret: str


class TestRequest(WireValue):
    """A message to try a receiver, or without one, the caller's e-mail address."""

    endpoint: Identifier | None = None


class DeliveryView(WireValue):
    """One message to one receiver. Its id is the same each time that it is sent."""

    id: Identifier
    kind: str
    channel: Literal["email", "webhook"]
    endpoint: str | None
    state: Literal["waiting", "sent", "given_up", "dropped"]
    attempts: int
    answer: str | None
    created_at: Moment
    next_at: Moment | None
    ended_at: Moment | None


class NotificationSettings(WireValue):
    """Choices of what the caller is told, and where. `mail`: this gateway sends e-mail."""

    mail: bool
    address: str | None
    pending_address: str | None
    preferences: tuple[Preference, ...]
    endpoints: tuple[EndpointView, ...]
