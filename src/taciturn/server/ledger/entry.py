"""One line of the ledger: what happened, chained by SHA-256 to the line before.

The details of an entry are all that its effect follows from: events with the accountant that priced
them, the price of each distinct step, whole costs. They are stored as canonical JSON, and read back
only if they are byte for byte what would be written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from taciturn.accounting.filter import ORDERS
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.certificate.canonical import canonical_json
from taciturn.errors import LedgerTamperedError, SpecError

_FORMAT = "taciturn-ledger-1"

START = "0" * 64
"""What the first entry of a namespace is chained to."""

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Milliseconds = Annotated[int, Field(ge=0, lt=2**53)]
Token = Annotated[int, Field(ge=0)]
Units = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(min_length=len(ORDERS), max_length=len(ORDERS)),
]


class Value(BaseModel):
    """Frozen, and only what it says: no coercion, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StepPrice(Value):
    """Count and price of a distinct step: fixed when it is reserved."""

    sampling_probability: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    count: Annotated[int, Field(gt=0)]
    unit: Units

    @property
    def step(self) -> SampledGaussian:
        """Step that is priced."""
        return SampledGaussian(self.sampling_probability, self.noise_multiplier)


class Opened(Value):
    """A namespace with its budget; `ordinal` counts the namespaces of the whole ledger."""

    kind: Literal["opened"] = "opened"
    ordinal: Annotated[int, Field(ge=1)]
    epsilon: Epsilon
    delta: Delta
    filter: Name


class Capped(Value):
    """The budget is another one from here on."""

    kind: Literal["capped"] = "capped"
    epsilon: Epsilon
    delta: Delta


class Granted(Value):
    """A user or group may spend up to this sub-cap, from here on."""

    kind: Literal["granted"] = "granted"
    holder: Name
    epsilon: Epsilon
    delta: Delta


class Reserved(Value):
    """A job's whole plan is held in its namespace's budget and in the grants it names."""

    kind: Literal["reserved"] = "reserved"
    job: Name
    grants: tuple[Name, ...]
    event: dict[str, Any]
    prices: tuple[StepPrice, ...]
    cost: Units
    accountant: Name
    hold_until_ms: Milliseconds


class Extended(Value):
    """More steps are held for a job that runs: those that are done again after a crash."""

    kind: Literal["extended"] = "extended"
    job: Name
    token: Token
    event: dict[str, Any]
    prices: tuple[StepPrice, ...]
    cost: Units
    accountant: Name


class Acquired(Value):
    """A worker takes the job: from here on only `token` counts."""

    kind: Literal["acquired"] = "acquired"
    job: Name
    token: Token
    worker: Name
    takeover: bool
    lease_until_ms: Milliseconds


class Charged(Value):
    """A block of steps is about to run: it counts as spent, whatever becomes of it."""

    kind: Literal["charged"] = "charged"
    job: Name
    token: Token
    event: dict[str, Any]
    cost: Units


class Closed(Value):
    """The job is over; what was held and never charged is free again."""

    kind: Literal["closed"] = "closed"
    job: Name
    token: Token
    reason: Literal["committed", "released", "expired"]
    freed: Units


class Excepted(Value):
    """A release without any guarantee, which no budget covers; who approved it."""

    kind: Literal["excepted"] = "excepted"
    job: Name
    approvals: Annotated[tuple[Name, ...], Field(min_length=1)]


Details = Opened | Capped | Granted | Reserved | Extended | Acquired | Charged | Closed | Excepted
_READER: TypeAdapter[Details] = TypeAdapter(Annotated[Details, Field(discriminator="kind")])
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line: its place, who asked for it, when it was written, and the digest over all of it.

    Attributes:
        request: SHA-256 of what was asked for, so that an operation id cannot be used twice.
        previous: digest of the entry before, or `START`.
    """

    namespace: str
    sequence: int
    operation_id: str
    request: str
    recorded_at_ms: int
    details: Details
    previous: str

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over everything that the line says."""
        fields = [
            _FORMAT,
            self.namespace,
            self.sequence,
            self.operation_id,
            self.request,
            self.recorded_at_ms,
            details_text(self.details),
            self.previous,
        ]
        return hashlib.sha256(canonical_json(fields)).hexdigest()


def details_text(details: Details) -> str:
    """The one text of these details."""
    return canonical_json(details.model_dump(mode="json")).decode()


def parse_details(text: str) -> Details:
    """The details whose text this is; raises LedgerTamperedError for any other text."""
    try:
        details = _READER.validate_json(text)
    except ValidationError:
        details = None
    if details is None or details_text(details) != text:
        raise LedgerTamperedError("the details are not as the ledger writes them")
    return details


def request_digest(operation: str, arguments: Mapping[str, Any]) -> str:
    """Digest of a request, which tells whether a repeated operation id asks for the same thing."""
    return hashlib.sha256(canonical_json([operation, dict(arguments)])).hexdigest()


def checked_name(value: str, what: str) -> str:
    """Raises SpecError unless `value` is 1 to 200 printable characters."""
    try:
        return _NAME.validate_python(value, strict=True)
    except ValidationError:
        raise SpecError(
            f"{what}={value!r} must be 1 to 200 characters, none of them a control character"
        ) from None
