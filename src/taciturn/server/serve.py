"""The gateway as processes of uvicorn, and the tokens of its first administrator.

One process serves by itself. Several are uvicorn's own workers: its supervisor starts again one
that dies or hangs, and replaces all of them one by one on SIGHUP. What they have to tell each other
goes through PostgreSQL (`process_messages`), as it does between replicas.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import Connection, Row, insert, select, update
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from taciturn.errors import SpecError
from taciturn.malloc import share_arenas
from taciturn.server import logs
from taciturn.server.app import create_app
from taciturn.server.audit_log import Record
from taciturn.server.bootstrap import open_gateway
from taciturn.server.context import Gateway
from taciturn.server.http.connections import Callers, LimitedConnection
from taciturn.server.identity import secret
from taciturn.server.identity.directory import revoke_all, role_text
from taciturn.server.launchers.base import Launcher
from taciturn.server.schema.tables import audit_log, tokens, users
from taciturn.server.settings import Settings
from taciturn.wire.identity import Role

GRACE_S = 120
"""How long a stop waits for requests, such as text that is being written for somebody."""
KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep an idle connection, so that they close it: a request
that is under way while the gateway closes would be lost."""
FIRST_ADMIN = "admin"
_BACKLOG = 2048
_BIND_S = 15.0
_HEALTH_S = 60
"""How long a process may take to answer its supervisor: a new one imports everything first."""
_COLLECT = (10_000, 20, 20)
_FIRST_TOKEN_MS = 7 * 86_400_000
_RECOVERY_TOKEN_MS = 86_400_000
_log = logging.getLogger("taciturn.serve")

MakeApp = Callable[[], FastAPI]


def first_admin(gateway: Gateway) -> str | None:
    """Make an administrator on a database without people, and return their token, which is kept
    nowhere else.

    One transaction, so that of several gateways one makes them, and a crash leaves nobody who has
    no token.
    """
    token, now_ms = secret.new_secret(), gateway.now_ms()

    def work(connection: Connection) -> bool:
        if connection.execute(select(users.c.id).limit(1)).first() is not None:
            return False
        user_id = _add_admin(connection, now_ms)
        _add_token(connection, token, user_id, "first", now_ms, _FIRST_TOKEN_MS)
        return True

    return token.text if gateway.write(work) else None


def recovered_admin(gateway: Gateway) -> str:
    """A new token for the first administrator, who is made again, let in again and given the role
    again where that is needed; what tokens they had before are revoked.

    For whoever can open the gateway's database, and so could write there anyway. It is on record,
    in the same transaction.
    """
    token, now_ms = secret.new_secret(), gateway.now_ms()

    def work(connection: Connection) -> None:
        row = connection.execute(select(users).where(users.c.name == FIRST_ADMIN)).first()
        user_id = _add_admin(connection, now_ms) if row is None else _let_in(connection, row)
        revoke_all(connection, user_id, now_ms)
        _add_token(connection, token, user_id, "recovery", now_ms, _RECOVERY_TOKEN_MS)
        record = Record(
            at_ms=now_ms,
            actor="operator",
            action="admin:recover",
            resource=f"users/{FIRST_ADMIN}",
            status=201,
            code=None,
            request_id=secret.new_id("req"),
            address=None,
            token_id=token.id,
        )
        connection.execute(insert(audit_log).values(record.values()))

    gateway.write(work)
    return token.text


def _add_admin(connection: Connection, now_ms: int) -> str:
    user_id = secret.new_id("usr")
    connection.execute(
        insert(users).values(
            id=user_id,
            name=FIRST_ADMIN,
            roles=role_text([Role.ADMIN]),
            disabled=False,
            created_at_ms=now_ms,
            access_changed_at_ms=now_ms,
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
    token: secret.NewSecret,
    user_id: str,
    name: str,
    now_ms: int,
    lifetime_ms: int,
) -> None:
    connection.execute(
        insert(tokens).values(
            id=token.id,
            kind="api",
            user_id=user_id,
            name=name,
            digest=token.digest,
            scopes="[]",
            created_at_ms=now_ms,
            expires_at_ms=now_ms + lifetime_ms,
        )
    )


class GatewayConfig(uvicorn.Config):
    """Settings of uvicorn: our own logs and limits, no word of what serves, addresses from proxies
    that were named only."""

    def __init__(self, settings: Settings, make_app: MakeApp) -> None:
        super().__init__(
            make_app,
            factory=True,
            workers=settings.process_count,
            http=LimitedConnection,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=settings.trusted_proxies is not None,
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_worker_healthcheck=_HEALTH_S,
            backlog=_BACKLOG,
            ws="none",
        )
        self.settings = settings

    @cached_property
    def callers(self) -> Callers:
        """The connections of this process."""
        return Callers(self.settings)


def serve(gateway: Gateway, *, launcher: Launcher | None = None) -> int:
    """Serve until SIGTERM or SIGINT, in as many processes as the settings say; the exit code.
    Workers go on, and report to the next gateway.

    Args:
        launcher: instead of the one that the settings name; each process gets a copy.

    Raises:
        SpecError: the address is taken.
    """
    settings = gateway.settings
    gateway.engine.dispose()
    return run(settings, partial(_open_app, settings, launcher))


def run(settings: Settings, make_app: MakeApp) -> int:
    """Serve what `make_app`, which can be pickled, makes in each process; the exit code.

    Raises:
        SpecError: the address is taken.
    """
    logs.set_up()
    listening = _bind(settings.host, settings.port)
    config = GatewayConfig(settings, partial(_prepared, make_app))
    if settings.process_count == 1:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)  # uvicorn raises it again once it has ended well
        uvicorn.Server(config).run([listening])
        return 0
    supervisor = Multiprocess(config, [listening])
    supervisor.run()
    failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    return 1 if failed else 0


def _open_app(settings: Settings, launcher: Launcher | None) -> FastAPI:
    return create_app(open_gateway(settings), launcher=launcher)


def _prepared(make_app: MakeApp) -> FastAPI:
    """The application of this process, which may be one of uvicorn's workers."""
    logs.set_up()
    share_arenas()
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        app = make_app()
    except Exception:
        _log.exception("the gateway cannot serve")
        sys.exit(STARTUP_FAILURE)
    # What is there by now stays: the collector need not look at it again with every few hundred
    # requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    return app


def _end_with_parent() -> None:
    """End with the supervisor, if that is killed: whatever is left of a gateway would keep the
    address, and the lead, from the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _ignore(*_: Any) -> None:
    """Do nothing."""


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens on an address, which all processes accept from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
    deadline_s = time.monotonic() + _BIND_S  # those of one before us may still be ending
    while True:
        try:
            return socket.create_server(
                (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=dual
            )
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise SpecError(
                    f"{host}:{port} cannot be listened on ({error.strerror}); end what listens "
                    "there, or set another TACITURN_PORT"
                ) from None
            time.sleep(0.1)
