"""A gateway whose people are told, and short words for what tests do with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from support.gateway import GatewayWorld
from support.receivers import PASSWORD, USER, Receiver
from taciturn.server.identity.email_addresses import keep
from taciturn.server.notifications.delivery import Delivery

HERE = ("127.0.0.0/8", "::1/128")
"""Networks of this machine, which webhooks of tests are sent to."""


@dataclass
class Told:
    """A gateway whose people have addresses, and what tests do with it."""

    world: GatewayWorld

    def turn(self) -> None:
        """Let the leader address and send."""
        Delivery(self.world.gateway).turn()

    def later(self, seconds: float) -> None:
        """Let time pass, and the leader send."""
        self.world.clock.forward(seconds)
        self.turn()

    def ask(self, who: str, method: str, path: str, body: Any = None) -> Any:
        """Ask for something about one's notifications."""
        return self.world.ask(who, method, f"/notifications{path}", body)

    def add(self, who: str, hook: Receiver, **fields: Any) -> Any:
        """Add a receiver of somebody's; returns it with its secret."""
        answer = self.ask(who, "POST", "/endpoints", {"name": "chat", "url": hook.url, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def deliveries(self, who: str) -> list[Any]:
        """What was sent to somebody, newest first."""
        items: list[Any] = self.ask(who, "GET", "/deliveries").json()["items"]
        return items

    def states(self, who: str) -> list[str]:
        """The same in words."""
        return [
            f"{item['kind']} {item['channel']} {item['state']}" for item in self.deliveries(who)
        ]


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
    """Settings for the mail server of `receivers`."""
    return {
        "smtp_host": "localhost",
        "smtp_port": port,
        "smtp_user": USER,
        "smtp_password": PASSWORD,
        "smtp_sender": "taciturn@hospital.example",
    }
