"""For administrators: people, their tokens, and the models that may be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taciturn.sdk.listing import Listing
from taciturn.sdk.requests import asked, request
from taciturn.sdk.transport import Transport, new_key
from taciturn.wire.identity import (
    NewToken,
    NewUser,
    TokenSecret,
    TokenView,
    UserChange,
    UserView,
)
from taciturn.wire.models import BaseModelView, NewBaseModel


@dataclass(frozen=True, slots=True)
class Administration:
    """What `client.admin` does. Tokens are always one's own."""

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
        password: str | None = None,
        sources: Sequence[str] = (),
    ) -> UserView:
        """Let a person in; without a password they log in by OIDC.

        Args:
            sources: folders and URLs where an owner may register data, such as s3://hospital/.
        """
        new = request(
            NewUser,
            name=name,
            roles=tuple(roles),
            groups=tuple(groups),
            display_name=display_name,
            password=password,
            sources=tuple(sources),
        )
        body = _with_password(asked(new), password)
        response = self.transport.send("POST", "users", body=body, key=new_key())
        return self.transport.read(UserView, response)

    def change_user(self, name: str, *, password: str | None = None, **changes: Any) -> UserView:
        """Change roles, groups, display_name, disabled, sources or password of a person."""
        change = request(UserChange, password=password, **changes)
        body = _with_password(asked(change), password)
        response = self.transport.send("PATCH", f"users/{name}", body=body)
        return self.transport.read(UserView, response)

    def tokens(self) -> Listing[TokenView]:
        """One's own tokens, without their secrets."""
        return Listing(self.transport.pages("tokens", TokenView))

    def add_token(
        self, name: str, *, scopes: Sequence[str] = (), expires_in_days: int = 30
    ) -> TokenSecret:
        """A new token; its secret is shown this once."""
        new = request(NewToken, name=name, scopes=tuple(scopes), expires_in_days=expires_in_days)
        response = self.transport.send("POST", "tokens", body=asked(new))
        return self.transport.read(TokenSecret, response)

    def revoke_token(self, id: str) -> None:
        """Make a token worthless, at once."""
        self.transport.send("DELETE", f"tokens/{id}")

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
        response = self.transport.send("POST", "base-models", body=asked(new), key=new_key())
        return self.transport.read(BaseModelView, response)


def _with_password(body: dict[str, Any], password: str | None) -> dict[str, Any]:
    """JSON of a secret is stars; here it has to travel."""
    return body if password is None else {**body, "password": password}
