"""Statement of a certificate: an in-toto Statement v1 whose predicate is a privacy guarantee.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. Subjects are the released
files, so that `cosign verify-blob-attestation` binds them; the predicate is ours and described in
the fields below. Every field is public.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from taciturn.accounting.events import event_from_dict, event_to_dict
from taciturn.certificate.canonical import canonical_json, parse_canonical
from taciturn.certificate.clock import parse_time
from taciturn.errors import CertificateError, TaciturnError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PredicateType = Literal["https://taciturn.example/attestation/differential-privacy/v1"]
PREDICATE_TYPE: PredicateType = "https://taciturn.example/attestation/differential-privacy/v1"
"""Names our predicate. The host is reserved (RFC 2606), so nobody can come to own the name."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class StatementValue(BaseModel):
    """A value of a statement: frozen, without unknown fields, of exactly these types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Digest(StatementValue):
    """An in-toto DigestSet with the one algorithm that we use."""

    sha256: Sha256


class File(StatementValue):
    """An in-toto ResourceDescriptor: a file's name and digest."""

    name: Text
    digest: Digest

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name in (".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
            raise ValueError(f"file name {name!r} must not lead into another folder")
        return name


class CertifiedAudit(StatementValue):
    """Outcome of an attack on the model: a lower bound on its epsilon.

    Attributes:
        epsilon_lower_bound: with `confidence`, the true epsilon is not below it.
        confidence: in (0, 1), for example 0.95.
        threat_model: what the attacker sees.
        canaries: how many were inserted.
        method: name and source of the attack.
    """

    epsilon_lower_bound: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    threat_model: Literal["black box", "white box"]
    canaries: Annotated[int, Field(ge=1)]
    method: Text


class CertifiedStep(StatementValue):
    """One computation on private units: its event, its unit and bound, and which data it saw.

    `dataset_commitment` is HMAC-SHA256 of the prepared data's fingerprint under a salt that stays
    in the private folder: it fixes the data and tells nothing about them.
    """

    purpose: Text
    dp_event: dict[str, Any]
    privacy_unit: Text
    max_records_per_unit: Annotated[int, Field(ge=1)]
    n_units: Annotated[int, Field(ge=1)]
    dataset_commitment: Sha256

    @field_validator("dp_event")
    @classmethod
    def _canonical_event(cls, fields: dict[str, Any]) -> dict[str, Any]:
        try:
            again = event_to_dict(event_from_dict(fields))
        except TaciturnError as error:
            raise ValueError(str(error)) from None
        if canonical_json(again) != canonical_json(fields):
            raise ValueError("dp_event is not in canonical form")
        return fields


class Guarantee(StatementValue):
    """(epsilon, delta) of all steps together, and what they are about."""

    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    privacy_unit: Text
    neighbouring_relation: Literal["add or remove one unit"]
    max_records_per_unit: Annotated[int, Field(ge=1)]
    accountant: Text
    steps: Annotated[tuple[CertifiedStep, ...], Field(min_length=1)]

    @property
    def dp_event(self) -> DpEvent:
        """All steps, composed."""
        return ComposedDpEvent([event_from_dict(step.dp_event) for step in self.steps])

    def check_audit(self, audit: CertifiedAudit | None) -> None:
        """Raises CertificateError if an audit found more than is promised."""
        if audit is not None and audit.epsilon_lower_bound > self.epsilon:
            raise CertificateError(
                f"an audit found epsilon to be at least {audit.epsilon_lower_bound:.4g}, more than "
                f"the {self.epsilon:.4g} that is promised: the guarantee is broken, and there is "
                "no certificate for it"
            )


class BaseModelFiles(StatementValue):
    """The public model that was fine-tuned."""

    name: Text
    files: Annotated[tuple[File, ...], Field(min_length=1)]


class Software(StatementValue):
    """Software that ran: the engine, the libraries below it, and the container image where there
    was one."""

    engine: Text
    libraries: dict[str, str]
    image_digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None


class UnprotectedText(StatementValue):
    """Text that was declared public and learned from without noise: the guarantee is not about it.

    Attributes:
        sha256: of its records' tokens, as the fit read them.
        declaration: who says that it is public, in words.
        name: of a gateway's public data set; not written where there is none.
    """

    records: Annotated[int, Field(ge=1)]
    sha256: Sha256
    declaration: Text
    name: Text | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if self.name is None:
            del fields["name"]
        return fields


class Predicate(StatementValue):
    """The guarantee of the subjects, and how they came about.

    `public_data` is not written where there is none, as certificates were before there was any.
    """

    guarantee: Guarantee
    base_model: BaseModelFiles
    software: Software
    audit: CertifiedAudit | None = None
    public_data: tuple[UnprotectedText, ...] = ()
    issued_at: str

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if not self.public_data:
            del fields["public_data"]
        return fields

    @field_validator("issued_at")
    @classmethod
    def _moment(cls, text: str) -> str:
        parse_time(text)
        return text


class Statement(StatementValue):
    """The whole payload of a certificate."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[File, ...], Field(min_length=1)]
    predicate_type: Annotated[PredicateType, Field(alias="predicateType")]
    predicate: Predicate

    @classmethod
    def of(cls, subject: tuple[File, ...], predicate: Predicate) -> Statement:
        """A statement of our predicate about these files."""
        return cls.model_validate(
            {
                "_type": STATEMENT_TYPE,
                "subject": subject,
                "predicateType": PREDICATE_TYPE,
                "predicate": predicate,
            }
        )

    def to_bytes(self) -> bytes:
        """The payload: canonical JSON."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_bytes(cls, payload: bytes) -> Statement:
        """Read what `to_bytes` wrote; raises CertificateError for anything else."""
        parse_canonical(payload, "the statement")
        try:
            statement = cls.model_validate_json(payload)
        except ValidationError as error:
            raise CertificateError(f"the statement's {error_place(error)}") from None
        if statement.to_bytes() != payload:
            raise CertificateError("the statement is not in canonical form")
        return statement


def error_place(error: ValidationError) -> str:
    """Return the first field that is wrong, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}"
