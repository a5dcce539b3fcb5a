"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.audit_log import AuditLog
from taciturn.server.background import Background
from taciturn.server.gateway import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.oidc import Oidc
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.sessions import Sessions
from taciturn.server.identity.tokens import Tokens
from taciturn.server.identity.users import Users
from taciturn.server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    background: Background
    metrics: Metrics
    audit_log: AuditLog
    directory: Directory
    users: Users
    tokens: Tokens
    logins: Logins
    oidc: Oidc
    sessions: Sessions

    @classmethod
    def of(cls, gateway: Gateway) -> Services:
        """All services on one gateway; what they do besides requests is in `background`."""
        background, metrics, audit_log = Background(), Metrics(), AuditLog(gateway)
        directory, passwords = Directory(gateway), Passwords()
        logins = Logins(gateway, directory, passwords)
        metrics.watch(
            "taciturn_queue",
            "What waits inside the gateway.",
            "queue",
            lambda: {"audit_log": audit_log.waiting},
        )
        return cls(
            gateway=gateway,
            background=background,
            metrics=metrics,
            audit_log=audit_log,
            directory=directory,
            users=Users(gateway, directory, passwords),
            tokens=Tokens(gateway, directory),
            logins=logins,
            oidc=Oidc.of(gateway, directory, logins),
            sessions=Sessions(gateway.settings),
        )
