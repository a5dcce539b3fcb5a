"""Identity of the caller: roles, users, groups, tokens."""

from __future__ import annotations

import hashlib
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
    """Role of a person. An auditor has no other role; nobody gives a role to themselves."""

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
    access_changed_at: Annotated[
        Moment | None,
        Field(description="When it was last changed how they get in or what they may do."),
    ] = None


class NewUser(WireValue):
    """A person to be let in. Nobody sets a password for them: they log in by OIDC, or set their own
    through a link."""

    name: UserName
    display_name: Line | None = None
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    groups: tuple[UserName, ...] = ()
    sources: Sources = ()


class UserChange(WireValue):
    """Changes of a person; null leaves as it is."""

    display_name: Line | None = None
    roles: Annotated[tuple[Role, ...] | None, Field(examples=[["practitioner"]])] = None
    groups: tuple[UserName, ...] | None = None
    disabled: bool | None = None
    sources: Sources | None = None


class PasswordLink(WireValue):
    """A link through which one person sets their own password, once. Shown to the administrator who
    has made it, this once; the gateway keeps its digest."""

    name: UserName
    url: str
    expires_at: Moment


class PasswordLinkView(WireValue):
    """Record of a link for a person: who made it, and when and from where it was used."""

    made_by: str
    created_at: Moment
    expires_at: Moment
    redeemed_at: Moment | None = None
    address: str | None = None


class LinkRedemption(WireValue):
    """A link, or what follows its `#`, and the password that its holder has chosen."""

    link: Annotated[SecretStr, Field(min_length=1, max_length=2000, examples=["tac_0_x"])]
    password: Annotated[
        SecretStr, Field(min_length=12, max_length=1000, examples=["correct horse battery staple"])
    ]


class Redeemed(WireValue):
    """The person whose password was set."""

    name: UserName


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
    last_used_at: Annotated[
        Moment | None, Field(description="Within a minute; null before the first use.")
    ] = None


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
    """The caller, as the gateway knows them.

    `access_changed_at` is when an administrator last changed how the caller gets in or what they
    may do: let them in, gave them a role or a group, or made a link through which their password
    was set. `password_links` are those of the last 90 days: whoever did not ask for one has been
    impersonated, or is about to be.
    """

    name: UserName
    display_name: str | None
    roles: tuple[Role, ...]
    groups: tuple[str, ...]
    actions: tuple[str, ...]
    expires_at: Moment | None
    access_changed_at: Moment | None = None
    password_links: tuple[PasswordLinkView, ...] = ()
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
        SecretStr, Field(min_length=12, max_length=1000, examples=["another horse battery staple"])
    ]


class CodeExchange(WireValue):
    """A command line's one-time code, and the verifier of the challenge that it began with."""

    code: Annotated[SecretStr, Field(max_length=2000, examples=["gAAAAA..."])]
    verifier: Annotated[SecretStr, Field(min_length=43, max_length=128, examples=["x" * 43])]


class NewLoginRequest(WireValue):
    """A program asks to act as somebody, who answers in a browser. `host` is its own word."""

    host: Annotated[Line, Field(examples=["ada's laptop"])]


class LoginRequest(WireValue):
    """A request that waits for an answer.

    `secret` is the program's own, for asking whether it was answered; `code` is for the person, who
    compares it with what the page at `url` shows.
    """

    secret: str
    code: Line
    url: Line
    expires_at: Moment
    interval_s: Annotated[float, Field(gt=0, description="Pause between two looks, at least.")]


class LoginState(StrEnum):
    """State of such a request; `used`: its token was given out."""

    OPEN = "open"
    ALLOWED = "allowed"
    DENIED = "denied"
    USED = "used"


class LoginLook(WireValue):
    """The program asks whether it was answered."""

    secret: Annotated[SecretStr, Field(min_length=1, max_length=200, examples=["tac_0_x"])]


class LoginAnswer(WireValue):
    """Answer so far; once it is `allowed`, with the token, this once."""

    state: LoginState
    token: TokenSecret | None = None


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


class AuditLogExport(WireValue):
    """Rows of the audit log that were written to a file and then removed.

    The file has one AuditEntry a line. `digest` covers this export and, by `previous`, all that
    came before: one that is changed, left out or taken away is found.
    """

    id: Annotated[int, Field(ge=1)]
    first_entry: int
    last_entry: int
    entries: int
    first_at: Moment
    last_at: Moment
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    previous: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: Moment

    def chained(self) -> str:
        """Return what `digest` has to be."""
        numbers = (self.previous, self.id, self.first_entry, self.last_entry, self.entries)
        text = "\n".join(str(part) for part in (*numbers, self.sha256))
        return hashlib.sha256(text.encode()).hexdigest()


class Retention(WireValue):
    """Times for which the gateway keeps logs and incidents; null: for ever."""

    audit_log_days: int | None
    incident_days: int
    audit_log_entries: int
    incidents: int


class Pruned(WireValue):
    """Rows that were removed because their time was over."""

    exports: tuple[AuditLogExport, ...]
    incidents: int
