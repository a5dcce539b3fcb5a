"""A gateway that may send to this machine, a mail server, and a receiver of webhooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from support.gateway import GatewayWorld
from support.receivers import PASSWORD, USER, Mailbox, Receiver, mail_server, receiver
from taciturn.server.identity.email_addresses import keep
from taciturn.server.notifications.delivery import Delivery

HERE = ("127.0.0.0/8", "::1/128")


@pytest.fixture
def mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """A real SMTP server with STARTTLS and a password."""
    with mail_server(tmp_path) as opened:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        yield opened


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """A receiver of webhooks."""
    with receiver() as opened:
        yield opened


@dataclasses.dataclass
class Told:
    """A gateway whose people have addresses, and what tests do with it."""

    world: GatewayWorld

    @property
    def delivery(self) -> Delivery:
        return Delivery(self.world.gateway)

    def turn(self) -> None:
        """Let the leader address and send."""
        self.delivery.turn()

    def later(self, seconds: float) -> None:
        """Let time pass, and the leader send."""
        self.world.clock.advance(seconds)
        self.turn()

    def ask(self, who: str, method: str, path: str, body: Any = None) -> Any:
        return self.world.ask(who, method, f"/notifications{path}", body)

    def add(self, who: str, hook: Receiver, **fields: Any) -> Any:
        """Add a receiver of somebody's; returns it with its secret."""
        answer = self.ask(who, "POST", "/endpoints", {"name": "chat", "url": hook.url, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def deliveries(self, who: str) -> list[Any]:
        items: list[Any] = self.ask(who, "GET", "/deliveries").json()["items"]
        return items

    def states(self, who: str) -> list[str]:
        return [f"{item['kind']} {item['channel']} {item['state']}" for item in self.deliveries(who)]


def told(engine: Engine, folder: Path, port: int | None, **settings: Any) -> Told:
    """A gateway whose people have addresses, where it sends mail."""
    mail = {} if port is None else mail_settings(port)
    defaults = {"notification_networks": HERE, "public_url": "https://tac.example", **mail}
    world = GatewayWorld.for_jobs(engine, folder, **{**defaults, **settings})

    def addressed(connection: Any) -> None:
        for name, user_id in world.users.items():
            keep(connection, user_id, address=f"{name}@hospital.example")

    world.gateway.write(addressed)
    return Told(world)


def mail_settings(port: int) -> dict[str, Any]:
    return {
        "smtp_host": "localhost",
        "smtp_port": port,
        "smtp_user": USER,
        "smtp_password": PASSWORD,
        "smtp_sender": "taciturn@hospital.example",
    }


@pytest.fixture
def mailing(engine: Engine, tmp_path: Path, mailbox: Mailbox) -> Told:
    """On both databases, with mail."""
    return told(engine, tmp_path, mailbox.port)


@pytest.fixture
def quiet(lite_engine: Engine, tmp_path: Path) -> Told:
    """On SQLite, without mail."""
    return told(lite_engine, tmp_path, None)
