"""A gateway's application with people, for tests of who gets in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select

from taciturn.server.app import create_app
from taciturn.server.context import Gateway
from taciturn.server.identity.links import PasswordLinks
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.passwords import Passwords
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.schema.tables import audit_log
from taciturn.server.services import Services
from taciturn.server.settings import Settings
from taciturn.wire.identity import Role

PASSWORD = "correct horse battery staple"
QUICK = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


class TestClock:
    """Says what time it is; goes on when told."""

    __test__ = False

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **span: float) -> None:
        self.now += timedelta(**span)


class Reception:
    """An application on a database, and its people's tokens."""

    def __init__(self, engine: Engine, folder: Path, **settings: Any) -> None:
        self.clock, key = TestClock(), SealKey.generate()
        self.gateway = Gateway(
            Settings(data_dir=folder, **settings),
            engine,
            key,
            Ledger(engine, key, clock=self.clock),
            self.clock,
        )
        self.app: FastAPI = create_app(self.gateway)
        self.services = self._quick(self.app.state.services)
        self.app.state.services = self.services
        self.client = TestClient(self.app, base_url="https://testserver")

    def _quick(self, services: Services) -> Services:
        directory = services.directory
        logins = Logins(self.gateway, directory, QUICK)
        links = PasswordLinks(self.gateway, directory, QUICK, logins)
        return replace(services, logins=logins, links=links)

    def person(
        self, name: str, *roles: Role, groups: Sequence[str] = (), password: str | None = None
    ) -> dict[str, str]:
        """Let somebody in; returns the headers that they send."""
        hashed = QUICK.hash(password) if password else None
        user_id = self.services.directory.create_user(
            name, roles, groups=groups, password_hash=hashed
        )
        return bearer(self.token(user_id))

    def token(self, user_id: str, scopes: Sequence[str] = (), days: float = 30) -> str:
        """A token's text."""
        return self.services.directory.create_token(
            kind="api",
            name="test",
            user_id=user_id,
            scopes=scopes,
            lifetime_ms=round(days * 86_400_000),
        ).text

    def worker(self, job_id: str) -> dict[str, str]:
        """The headers of a job's worker."""
        made = self.services.directory.create_worker_token(job_id, 1)
        return bearer(made.text)

    def recorded(self) -> list[Any]:
        """The rows of the audit log."""
        query = select(audit_log).order_by(audit_log.c.id)
        return list(self.gateway.read(lambda connection: connection.execute(query).all()))


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"}
