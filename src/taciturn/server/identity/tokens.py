"""A person's own tokens: made with no more than the token in hand may do, listed, revoked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.permissions import Action, actions_of
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging, newest_first, position_of
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import tokens
from taciturn.server.timestamps import moment
from taciturn.wire.identity import NewToken, TokenSecret, TokenView
from taciturn.wire.values import Page

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a person, for that person alone."""

    gateway: Gateway
    directory: Directory

    def create(self, caller: Principal, new: NewToken) -> TokenSecret:
        """A new token; raises ProblemError `forbidden` for scopes beyond the token in hand.

        Without scopes it may do what its maker's roles allow, now and later; made by a token that
        has scopes, it gets the same ones.
        """
        scopes = _scopes(caller, new.scopes)
        new_token = self.directory.create_token(
            kind="api",
            name=new.name,
            lifetime_ms=new.expires_in_days * _DAY_MS,
            user_id=caller.user_id,
            scopes=scopes,
        )
        return self.with_text(new_token.id, new_token.text)

    def with_text(self, token_id: str, text: str) -> TokenSecret:
        """A token that was just made, with its text."""
        return TokenSecret(**dict(_view(self._row(token_id))), token=text)

    def list(self, caller: Principal, paging: Paging) -> Page[TokenView]:
        """The caller's own tokens, newest first, expired and revoked ones included."""
        query = select(tokens).where(tokens.c.user_id == caller.user_id)
        return paging.page(
            self.gateway.rows(newest_first(query, tokens, paging)), _view, position_of
        )

    def revoke(self, caller: Principal, token_id: str) -> None:
        """End one of the caller's own tokens; raises ProblemError `not_found` for any other."""
        if self._row(token_id).user_id != caller.user_id:
            raise _unknown(token_id)
        self.directory.revoke(token_id)

    def _row(self, token_id: str) -> Row[Any]:
        rows = self.gateway.rows(select(tokens).where(tokens.c.id == token_id))
        if not rows:
            raise _unknown(token_id)
        return rows[0]


def _scopes(caller: Principal, requested: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(requested) - set(Action))
    if unknown:
        raise ProblemError(
            "invalid", f"scopes: there is no action {unknown[0]!r}; /v1/self lists yours"
        )
    beyond = sorted(set(requested) - caller.actions)
    if beyond:
        raise ProblemError(
            "forbidden", f"scopes: {beyond[0]!r} is not yours to give; /v1/self lists what is"
        )
    limited = caller.actions != actions_of(caller.roles)
    return tuple(sorted(requested or (caller.actions if limited else ())))


def _unknown(token_id: str) -> ProblemError:
    return ProblemError("not_found", f"you have no token {token_id!r}")


def _view(row: Row[Any]) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        scopes=tuple(json.loads(row.scopes)),
        created_at=moment(row.created_at_ms),
        expires_at=moment(row.expires_at_ms),
        revoked_at=None if row.revoked_at_ms is None else moment(row.revoked_at_ms),
        last_used_at=None if row.used_at_ms is None else moment(row.used_at_ms),
    )
