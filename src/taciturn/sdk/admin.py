"""Administration: people, their tokens, and the models that may be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taciturn.sdk.listing import Listing
from taciturn.sdk.requests import body_of, request
from taciturn.sdk.transport import Transport, new_key
from taciturn.wire.identity import (
    NewToken,
    NewUser,
    PasswordLink,
    Pruned,
    Retention,
    TokenSecret,
    TokenView,
    UserChange,
    UserView,
)
from taciturn.wire.jobs import JobKind, JobState, OperatedJob
from taciturn.wire.models import BaseModelView, NewBaseModel


@dataclass(frozen=True, slots=True)
class Administration:
    """Requests of administrators, `client.admin`. Tokens are always one's own."""

    transport: Transport

    def users(self) -> Listing[UserView]:
        """Everybody."""
        return Listing(self.transport.pages("users", UserView))

    def add_user(
        self,
        name: str,
        roles: Sequence[str],
        *,
        groups: Sequence[str] = (),
        display_name: str | None = None,
        sources: Sequence[str] = (),
    ) -> UserView:
        """Let a person in: by OIDC, or with a password that they set through `password_link`.

        Args:
            sources: folders and URLs where an owner may register data, such as s3://hospital/.
        """
        new = request(
            NewUser,
            name=name,
            roles=tuple(roles),
            groups=tuple(groups),
            display_name=display_name,
            sources=tuple(sources),
        )
        response = self.transport.send("POST", "users", body=body_of(new), key=new_key())
        return self.transport.read(UserView, response)

    def change_user(self, name: str, **changes: Any) -> UserView:
        """Change roles, groups, sources, display_name or disabled of a person."""
        body = body_of(request(UserChange, **changes))
        response = self.transport.send("PATCH", f"users/{name}", body=body)
        return self.transport.read(UserView, response)

    def password_link(self, name: str) -> PasswordLink:
        """A link through which a person sets their own password, once; to be handed to them alone.
        That it was made, and used, is shown to them and to auditors."""
        response = self.transport.send("POST", f"users/{name}/password-links")
        return self.transport.read(PasswordLink, response)

    def retention(self) -> Retention:
        """Return how long the audit log and incidents are kept, and how many there are."""
        return self.transport.get("retention", Retention)

    def prune(self) -> Pruned:
        """Have removed now what is kept longer than the gateway's settings say."""
        return self.transport.read(Pruned, self.transport.send("POST", "retention/prunes"))

    def tokens(self) -> Listing[TokenView]:
        """One's own tokens, without their secrets."""
        return Listing(self.transport.pages("tokens", TokenView))

    def add_token(
        self, name: str, *, scopes: Sequence[str] = (), expires_in_days: int = 30
    ) -> TokenSecret:
        """A new token; its secret is shown this once."""
        new = request(NewToken, name=name, scopes=tuple(scopes), expires_in_days=expires_in_days)
        response = self.transport.send("POST", "tokens", body=body_of(new))
        return self.transport.read(TokenSecret, response)

    def revoke_token(self, id: str) -> None:
        """Make a token worthless, at once."""
        self.transport.send("DELETE", f"tokens/{id}")

    def jobs(
        self,
        *,
        state: JobState | None = None,
        kind: JobKind | None = None,
        requester: str | None = None,
    ) -> Listing[OperatedJob]:
        """Everybody's jobs, newest first, without what they are about."""
        filters = {"state": state, "kind": kind, "requester": requester}
        query = {name: str(value) for name, value in filters.items() if value is not None}
        return Listing(self.transport.pages("operations/jobs", OperatedJob, query))

    def cancel_job(self, id: str) -> OperatedJob:
        """End anybody's job. What it has charged stays spent."""
        response = self.transport.send("POST", f"operations/jobs/{id}/cancel", key=f"cancel-{id}")
        return self.transport.read(OperatedJob, response)

    def add_base_model(
        self, name: str, *, parameters: int, context_length: int, vocabulary: int
    ) -> BaseModelView:
        """Say that a model may be fitted, and what it is: workers check it."""
        new = request(
            NewBaseModel,
            name=name,
            parameters=parameters,
            context_length=context_length,
            vocabulary=vocabulary,
        )
        response = self.transport.send("POST", "base-models", body=body_of(new), key=new_key())
        return self.transport.read(BaseModelView, response)
