"""A gateway that may send to this machine, a mail server, and a receiver of webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from support.receivers import Mailbox, Receiver, mail_server, receiver
from support.told import Told, told


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


@pytest.fixture
def mailing(engine: Engine, tmp_path: Path, mailbox: Mailbox) -> Told:
    """On both databases, with mail."""
    return told(engine, tmp_path, mailbox.port)


@pytest.fixture
def quiet(lite_engine: Engine, tmp_path: Path) -> Told:
    """On SQLite, without mail."""
    return told(lite_engine, tmp_path, None)
