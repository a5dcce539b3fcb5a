"""Settings of the tracker: what is refused at the start, and what is never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from support.console import look
from support.gateway import GatewayWorld
from support.mlflow_server import TOKEN, mlflow_server
from taciturn.server import preflight
from taciturn.server.settings import Settings
from taciturn.server.tracking.mlflow import TrackerError, token_of

URL = "https://mlflow.example"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mlflow_url": "mlflow.example"}, "no address of a server"),
        ({"mlflow_url": "ftp://mlflow.example"}, "no address of a server"),
        ({"mlflow_url": "https://ada:geheim@mlflow.example"}, "without a user, a password"),
        ({"mlflow_url": f"{URL}?token=geheim"}, "without a user, a password"),
        ({"mlflow_url": "https://[::1"}, "no address of a server"),
        ({"mlflow_token": "x"}, "set TACITURN_MLFLOW_URL"),
        ({"mlflow_url": URL, "mlflow_token": "x", "mlflow_token_file": "/f"}, "set one of"),
        ({"mlflow_url": "http://mlflow.example", "mlflow_token": "x"}, "in the clear"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(**fields)
    message = refusal.value.errors()[0]["msg"]
    assert words in message
    assert "geheim" not in message


def test_the_token_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("mlf-1\n")
    assert token_of(Settings(mlflow_url=URL, mlflow_token_file=path)) == "mlf-1"
    assert token_of(Settings(mlflow_url=URL)) is None
    for broken in (tmp_path / "nothing", tmp_path / "empty"):
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(TrackerError, match="TACITURN_MLFLOW_TOKEN_FILE"):
            token_of(Settings(mlflow_url=URL, mlflow_token_file=broken))


def test_the_check_asks_and_makes_nothing(tmp_path: Path) -> None:
    with mlflow_server() as server:
        settings = Settings(data_dir=tmp_path, mlflow_url=server.url, mlflow_token=SecretStr(TOKEN))
        (finding,) = preflight._tracker(settings)
        assert finding.fine
        assert server.experiments == {}
        server.token = "another"
        (finding,) = preflight._tracker(settings)
        assert "it answered 401" in finding.text
        assert TOKEN not in repr(finding)
    (finding,) = preflight._tracker(settings)
    assert "does not answer" in finding.text
    assert list(preflight._tracker(Settings(data_dir=tmp_path))) == []


def test_the_console_shows_the_address_and_no_token(lite_engine: Any, tmp_path: Path) -> None:
    world = GatewayWorld.open(
        lite_engine, tmp_path, mlflow_url=URL, mlflow_token=SecretStr("geheim-geheim")
    ).populate()
    page = look(world, "adam", "/settings").text
    assert URL in page
    assert "TACITURN_MLFLOW_TOKEN" in page
    assert "geheim" not in page
