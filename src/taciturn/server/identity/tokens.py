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
from taciturn.server.newest_first import key, newest_first
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import tokens
from taciturn.server.timestamps import moment
from taciturn.wire.identity import NewToken, TokenSecret, TokenView
from taciturn.wire.values import Page

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """What people do with their own tokens. Nobody else's are in sight."""

    gateway: Gateway
    directory: Directory

    def create(self, caller: Principal, new: NewToken) -> TokenSecret:
        """A new token; raises ProblemError `forbidden` for scopes beyond the token in hand.

        Without scopes it may do what its maker's roles allow, now and later; made by a token that
        has scopes, it gets the same ones.
        """
        scopes = _scopes(caller, new.scopes)
        made = self.directory.create_token(
            kind="api",
            name=new.name,
            lifetime_ms=new.expires_in_days * _DAY_MS,
            user_id=caller.user_id,
            scopes=scopes,
        )
        return self.shown(made.id, made.text)

    def shown(self, token_id: str, text: str) -> TokenSecret:
        """A token that was just made, with its text."""
        return TokenSecret(**dict(_view(self._row(token_id))), token=text)

    def list(self, caller: Principal, paging: Paging) -> Page[TokenView]:
        """The caller's own tokens, newest first, expired and revoked ones included."""
        query = select(tokens).where(tokens.c.user_id == caller.user_id)
        return paging.page(self.gateway.rows(newest_first(query, tokens, paging)), _view, key)

    def revoke(self, caller: Principal, token_id: str) -> None:
        """End one of the caller's own tokens; raises ProblemError `not_found` for any other."""
        if self._row(token_id).user_id != caller.user_id:
            raise _unknown(token_id)
        self.directory.revoke(token_id)

    def _row(self, token_id: str) -> Row[Any]:
        found = self.gateway.rows(select(tokens).where(tokens.c.id == token_id))
        if not found:
            raise _unknown(token_id)
        return found[0]


def _scopes(caller: Principal, asked: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(asked) - set(Action))
    if unknown:
        raise ProblemError(
            "invalid", f"scopes: there is no action {unknown[0]!r}; /v1/self lists yours"
        )
    beyond = sorted(set(asked) - caller.actions)
    if beyond:
        raise ProblemError(
            "forbidden", f"scopes: {beyond[0]!r} is not yours to give; /v1/self lists what is"
        )
    limited = caller.actions != actions_of(caller.roles)
    return tuple(sorted(asked or (caller.actions if limited else ())))


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
    )
