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
    """Requests of administrators, `client.admin`. Tokens are always one's own.

    Attributes:
        transport: connection to the gateway.

    Raises:
        GatewayError: any request can raise it, as of `taciturn.Client`.

    Examples:
        >>> [user.name for user in client.admin.users()]
        ['ada']
    """

    transport: Transport

    def users(self) -> Listing[UserView]:
        """Everybody.

        Examples:
            >>> [user.name for user in client.admin.users()]
            ['ada']
        """
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
            name: by which the person signs in.
            roles: of practitioner, owner, auditor, admin.
            groups: for grants to `group:NAME`, and for approvers.
            display_name: as the console shows it.

        Raises:
            ConflictError: the name is taken.

        Examples:
            >>> client.admin.add_user("paul", ["practitioner"], groups=["team"]).name
            'paul'
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
        """Change roles, groups, sources, display_name or disabled of a person.

        Args:
            name: of the person.
            changes: new values of roles, groups, sources, display_name or disabled.

        Raises:
            NotThereError: there is no such person, or none that the caller may know of.

        Examples:
            >>> client.admin.change_user("ada", sources=["s3://hospital/"]).sources
            ('s3://hospital/',)
        """
        body = body_of(request(UserChange, **changes))
        response = self.transport.send("PATCH", f"users/{name}", body=body)
        return self.transport.read(UserView, response)

    def password_link(self, name: str) -> PasswordLink:
        """A link through which a person sets their own password, once; to be handed to them alone.
        That it was made, and used, is shown to them and to auditors.

        Args:
            name: of the person.

        Raises:
            NotThereError: there is no such person, or none that the caller may know of.

        Examples:
            >>> client.admin.password_link("ada").url
            'http://testserver/v1/password#...'
        """
        response = self.transport.send("POST", f"users/{name}/password-links")
        return self.transport.read(PasswordLink, response)

    def retention(self) -> Retention:
        """Return how long the audit log and incidents are kept, and how many there are.

        Examples:
            >>> client.admin.retention().audit_log_days
            365
        """
        return self.transport.get("retention", Retention)

    def prune(self) -> Pruned:
        """Have removed now what is kept longer than the gateway's settings say.

        Examples:
            >>> client.admin.prune().incidents
            1
        """
        return self.transport.read(Pruned, self.transport.send("POST", "retention/prunes"))

    def tokens(self) -> Listing[TokenView]:
        """One's own tokens, without their secrets.

        Examples:
            >>> [token.name for token in client.admin.tokens()]
            ['ci']
        """
        return Listing(self.transport.pages("tokens", TokenView))

    def add_token(
        self, name: str, *, scopes: Sequence[str] = (), expires_in_days: int = 30
    ) -> TokenSecret:
        """A new token; its secret is shown this once.

        Args:
            name: what it is for.
            scopes: what it may do; by default everything that its holder may.
            expires_in_days: days until it ends.

        Raises:
            InvalidRequestError: it would last longer than the gateway allows.

        Examples:
            >>> client.admin.add_token("nightly", expires_in_days=7).token
            'tac_...'
        """
        new = request(NewToken, name=name, scopes=tuple(scopes), expires_in_days=expires_in_days)
        response = self.transport.send("POST", "tokens", body=body_of(new))
        return self.transport.read(TokenSecret, response)

    def revoke_token(self, id: str) -> None:
        """Make a token worthless, at once.

        Args:
            id: as `tokens` says it.

        Raises:
            NotThereError: there is no such token, or none that the caller may know of.

        Examples:
            >>> client.admin.revoke_token("tok_1")
        """
        self.transport.send("DELETE", f"tokens/{id}")

    def jobs(
        self,
        *,
        state: JobState | None = None,
        kind: JobKind | None = None,
        requester: str | None = None,
    ) -> Listing[OperatedJob]:
        """Everybody's jobs, newest first, without what they are about.

        Args:
            state: only jobs in this state.
            kind: only jobs of this kind.
            requester: only those of this person.

        Examples:
            >>> len(client.admin.jobs(state="running"))
            0
        """
        filters = {"state": state, "kind": kind, "requester": requester}
        query = {name: str(value) for name, value in filters.items() if value is not None}
        return Listing(self.transport.pages("operations/jobs", OperatedJob, query))

    def cancel_job(self, id: str) -> OperatedJob:
        """End anybody's job. What it has charged stays spent.

        Args:
            id: as `jobs` says it.

        Raises:
            ConflictError: it is over already.

        Examples:
            >>> job = data.fit("taciturn/tiny-medical", target_epsilon=3)
            >>> client.admin.cancel_job(job.id).state.value
            'cancelled'
        """
        response = self.transport.send("POST", f"operations/jobs/{id}/cancel", key=f"cancel-{id}")
        return self.transport.read(OperatedJob, response)

    def add_base_model(
        self, name: str, *, parameters: int, context_length: int, vocabulary: int
    ) -> BaseModelView:
        """Say that a model may be fitted, and what it is: workers check it.

        Args:
            name: hub id, or folder that workers see.
            parameters: number of weights.
            context_length: tokens that it reads at most.
            vocabulary: number of tokens that it knows.

        Raises:
            ConflictError: it is there with other figures.

        Examples:
            >>> client.admin.add_base_model(
            ...     "hospital/base", parameters=124_000_000, context_length=1024, vocabulary=50_257
            ... ).name
            'hospital/base'
        """
        new = request(
            NewBaseModel,
            name=name,
            parameters=parameters,
            context_length=context_length,
            vocabulary=vocabulary,
        )
        response = self.transport.send("POST", "base-models", body=body_of(new), key=new_key())
        return self.transport.read(BaseModelView, response)
