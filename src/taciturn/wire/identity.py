"""Who asks: roles, users, groups, tokens."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, SecretStr

from taciturn.wire.values import Line, Moment, WireValue

UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$", examples=["ada"])]


Sources = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...],
    Field(
        max_length=200,
        description="Folders, files and URLs where an owner may register data.",
        examples=[["s3://hospital/", "/data/ward/"]],
    ),
]


class Role(StrEnum):
    """What a person does. An auditor has no other role; nobody gives a role to themselves."""

    ADMIN = "admin"
    OWNER = "owner"
    PRACTITIONER = "practitioner"
    AUDITOR = "auditor"


class UserView(WireValue):
    """A person as administrators see them."""

    name: UserName
    display_name: str | None = None
    roles: tuple[Role, ...]
    groups: tuple[str, ...] = ()
    disabled: bool = False
    sources: Sources = ()
    created_at: Moment


class NewUser(WireValue):
    """A person to be let in. Without a password they log in by OIDC, or with tokens."""

    name: UserName
    display_name: Line | None = None
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    groups: tuple[UserName, ...] = ()
    sources: Sources = ()
    password: Annotated[SecretStr, Field(min_length=12, max_length=1000)] | None = None


class UserChange(WireValue):
    """What to change; null leaves as it is."""

    display_name: Line | None = None
    roles: Annotated[tuple[Role, ...] | None, Field(examples=[["practitioner"]])] = None
    groups: tuple[UserName, ...] | None = None
    disabled: bool | None = None
    sources: Sources | None = None
    password: Annotated[SecretStr, Field(min_length=12, max_length=1000)] | None = None


class NewToken(WireValue):
    """A token to be made: for oneself, never with more than one's own permissions."""

    name: Line
    scopes: Annotated[
        tuple[str, ...],
        Field(description="Actions that it may be used for, such as jobs:create; empty: all own."),
    ] = ()
    expires_in_days: Annotated[int, Field(ge=1, le=366)] = 30


class TokenView(WireValue):
    """A token, without the secret."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: Moment
    expires_at: Moment
    revoked_at: Moment | None = None


class TokenSecret(TokenView):
    """A token that was just made. The secret is shown this once; the gateway keeps its digest."""

    token: str


class Login(WireValue):
    """A local password."""

    name: UserName
    password: Annotated[
        SecretStr, Field(max_length=1000, examples=["correct horse battery staple"])
    ]


class Self(WireValue):
    """Who the gateway takes the caller for."""

    name: UserName
    display_name: str | None
    roles: tuple[Role, ...]
    groups: tuple[str, ...]
    actions: tuple[str, ...]
    expires_at: Moment | None
    server_version: str


class Session(WireValue):
    """A browser's session has begun: the cookie is set.

    `csrf` goes into the header `Taciturn-CSRF` of every write.
    """

    csrf: str
    expires_at: Moment


class NewPassword(WireValue):
    """Another password for oneself."""

    current: Annotated[SecretStr, Field(max_length=1000, examples=["correct horse battery staple"])]
    new: Annotated[
        SecretStr,
        Field(min_length=12, max_length=1000, examples=["another horse battery staple"]),
    ]


class CodeExchange(WireValue):
    """A command line's one-time code, and the verifier of the challenge that it began with."""

    code: Annotated[SecretStr, Field(max_length=2000, examples=["gAAAAA..."])]
    verifier: Annotated[SecretStr, Field(min_length=43, max_length=128, examples=["x" * 43])]


class AuditEntry(WireValue):
    """One request and its answer. `token` is the id of the token that was shown, never its text."""

    id: int
    at: Moment
    actor: str
    action: str
    resource: str
    status: int
    code: str | None
    request_id: str
    address: str | None
    token: str | None
