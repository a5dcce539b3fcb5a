"""The gateway as processes: a uvicorn in each, from the first admin's token to a graceful end."""

from __future__ import annotations

import gc
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import Connection, Row, insert, select, update

from taciturn.server import logs
from taciturn.server.allocator import share_arenas, widen_names
from taciturn.server.app import create_app
from taciturn.server.audit_log import Record
from taciturn.server.gateway import Gateway
from taciturn.server.identity import secret
from taciturn.server.identity.directory import revoke_all, role_text
from taciturn.server.launchers.port import Launcher
from taciturn.server.settings import Settings
from taciturn.server.siblings import Siblings
from taciturn.server.starting import open_gateway
from taciturn.server.supervising import supervise
from taciturn.server.tables import audit_log, tokens, users
from taciturn.wire.identity import Role

GRACE_S = 30
KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep an idle connection, so that they close it: a request
that is under way while the gateway closes would be lost."""
FIRST_ADMIN = "admin"
_COLLECT = (10_000, 20, 20)
_FIRST_TOKEN_MS = 7 * 86_400_000
_RECOVERY_TOKEN_MS = 86_400_000


def first_admin(gateway: Gateway) -> str | None:
    """On a database without people: an administrator, and their token, which is nowhere else.

    One transaction, so that of several gateways one makes them, and a crash leaves nobody who has
    no token.
    """
    made, now_ms = secret.new_secret(), gateway.now_ms()

    def work(connection: Connection) -> bool:
        if connection.execute(select(users.c.id).limit(1)).first() is not None:
            return False
        user_id = _add_admin(connection, now_ms)
        _add_token(connection, made, user_id, "first", now_ms, _FIRST_TOKEN_MS)
        return True

    return made.text if gateway.write(work) else None


def recovered_admin(gateway: Gateway) -> str:
    """A new token for the first administrator, who is made again, let in again and given the role
    again where that is needed; what tokens they had before are revoked.

    For whoever can open the gateway's database, and so could write there anyway. It is on record,
    in the same transaction.
    """
    made, now_ms = secret.new_secret(), gateway.now_ms()

    def work(connection: Connection) -> None:
        row = connection.execute(select(users).where(users.c.name == FIRST_ADMIN)).first()
        user_id = _add_admin(connection, now_ms) if row is None else _let_in(connection, row)
        revoke_all(connection, user_id, now_ms)
        _add_token(connection, made, user_id, "recovery", now_ms, _RECOVERY_TOKEN_MS)
        record = Record(
            at_ms=now_ms,
            actor="operator",
            action="admin:recover",
            resource=f"users/{FIRST_ADMIN}",
            status=201,
            code=None,
            request_id=secret.new_id("req"),
            address=None,
            token_id=made.id,
        )
        connection.execute(insert(audit_log).values(record.values()))

    gateway.write(work)
    return made.text


def _add_admin(connection: Connection, now_ms: int) -> str:
    user_id = secret.new_id("usr")
    connection.execute(
        insert(users).values(
            id=user_id,
            name=FIRST_ADMIN,
            roles=role_text([Role.ADMIN]),
            disabled=False,
            created_at_ms=now_ms,
        )
    )
    return user_id


def _let_in(connection: Connection, row: Row[Any]) -> str:
    """Not disabled, and an administrator and nothing besides: duties stay separate."""
    change = update(users).where(users.c.id == row.id)
    connection.execute(change.values(disabled=False, roles=role_text([Role.ADMIN])))
    return str(row.id)


def _add_token(
    connection: Connection,
    made: secret.NewSecret,
    user_id: str,
    name: str,
    now_ms: int,
    lifetime_ms: int,
) -> None:
    connection.execute(
        insert(tokens).values(
            id=made.id,
            kind="api",
            user_id=user_id,
            name=name,
            digest=made.digest,
            scopes="[]",
            created_at_ms=now_ms,
            expires_at_ms=now_ms + lifetime_ms,
        )
    )


class GatewayServer(uvicorn.Server):
    """Uvicorn that tells the gateway at once when it is asked to stop, so that event streams end
    and do not hold the others up; and that has then ended well, by its own exit code."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen. What is there by now stays: the collector need not look at it again with
        every few hundred requests."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing new, finish what was asked, stop what runs in the background."""
        self._app.state.services.background.announce_stop()
        await super().shutdown(sockets)
        self._captured_signals.clear()


def serve(gateway: Gateway, *, launcher: Launcher | None = None) -> int:
    """Serve until SIGTERM or SIGINT, in as many processes as the settings say; the exit code.
    Workers go on, and report to the next gateway.

    Args:
        launcher: instead of the one that the settings name.

    Raises:
        SpecError: the address is taken.
    """
    logs.set_up()
    share_arenas()  # here, so that all processes have it and none has threads yet
    widen_names()
    settings = gateway.settings
    if settings.process_count == 1:
        _serve(gateway, Siblings(), launcher, None)
        return 0
    gateway.engine.dispose()  # no connection may be open in two processes

    def one(siblings: Siblings, sockets: list[socket.socket]) -> None:
        _serve(open_gateway(settings), siblings, launcher, sockets)

    return supervise(settings.host, settings.port, settings.process_count, one)


def _serve(
    gateway: Gateway,
    siblings: Siblings,
    launcher: Launcher | None,
    sockets: list[socket.socket] | None,
) -> None:
    app = create_app(gateway, siblings=siblings, launcher=launcher)
    GatewayServer(config(gateway.settings, app), app).run(sockets)
    gateway.engine.dispose()


def config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """How uvicorn is set up: our own logs, no word of what serves, addresses from proxies that
    were named only."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="none",
    )
