"""The caller, as established from a token; never from anything else that a request says."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.identity.permissions import Action
from taciturn.wire.identity import Role


@dataclass(frozen=True, slots=True)
class Principal:
    """A person, with what their roles and the token in hand let them do.

    Attributes:
        actions: of the roles, cut down to the token's scopes.
        token_id: the token in hand.
        session: it is a browser's, so that a write needs the CSRF header too.
    """

    user_id: str
    name: str
    display_name: str | None
    roles: frozenset[Role]
    groups: frozenset[str]
    actions: frozenset[Action]
    token_id: str
    expires_at_ms: int
    session: bool = False

    @property
    def holders(self) -> tuple[str, ...]:
        """Holders whose grants this person may draw on: their own first, then their groups'."""
        return (f"user:{self.name}", *(f"group:{name}" for name in sorted(self.groups)))

    def has(self, role: Role) -> bool:
        """True if this person has the role."""
        return role in self.roles


@dataclass(frozen=True, slots=True)
class WorkerPrincipal:
    """A worker: good for one attempt of one job, at that job's own endpoints, and nothing else."""

    job_id: str
    token_id: str
    attempt: int
