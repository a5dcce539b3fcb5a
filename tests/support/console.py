"""Pages of the console, asked for and sent forms as their readers do."""

from __future__ import annotations

from typing import Any

from httpx import Response

from support.gateway import GatewayWorld


def look(world: GatewayWorld, who: str, path: str, **headers: str) -> Response:
    """Ask for a page as `who`."""
    return world.client.get(path, headers=world.headers(who) | headers, follow_redirects=False)


def send(world: GatewayWorld, who: str, path: str, **fields: Any) -> Response:
    """Send a form as `who`, from a page of the console."""
    return world.client.post(path, data=fields, headers=world.headers(who) | {"HX-Request": "true"})
