"""The program, run in the process of its test: no command needs one of its own to be itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from support.fake_gateway import TOKEN, URL, FakeApi
from taciturn.cli.main import main
from taciturn.sdk import client as clients
from taciturn.sdk import login as logins
from taciturn.sdk.transport import Patience


class Done(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def taciturn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Arguments -> exit code, output, errors, as a shell would see them."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["taciturn", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return Done(int(stop.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    """A gateway that every client of this process reaches."""
    gateway = FakeApi()

    class Transport(clients.Transport):
        def __init__(self, url: str, token: str | None, **_: object) -> None:
            haste = Patience(attempts=2, first_wait_s=0.0)
            super().__init__(url, token, patience=haste, http=gateway.http())

    monkeypatch.setattr(clients, "Transport", Transport)
    monkeypatch.setattr(logins, "Transport", Transport)
    monkeypatch.setenv("TACITURN_URL", URL)
    monkeypatch.setenv("TACITURN_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return gateway
