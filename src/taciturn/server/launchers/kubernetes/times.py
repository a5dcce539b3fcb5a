"""Times as Kubernetes writes them."""

from __future__ import annotations

from datetime import datetime


def moment(text: str) -> datetime:
    """RFC 3339 in UTC."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
