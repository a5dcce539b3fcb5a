"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.background import Background
from taciturn.server.gateway import Gateway
from taciturn.server.identity.directory import Directory


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    background: Background
    directory: Directory

    @classmethod
    def of(cls, gateway: Gateway) -> Services:
        """All services on one gateway; what they do besides requests is in `background`."""
        background = Background()
        return cls(gateway=gateway, background=background, directory=Directory(gateway))
