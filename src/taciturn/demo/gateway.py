"""A gateway to try things on: this machine, the embedded defaults, invented people and notes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pandas as pd

from taciturn.certificate.keygen import write_key
from taciturn.data.split import is_test
from taciturn.embedded.notes import patient_notes
from taciturn.errors import UnavailableError
from taciturn.sdk.client import Client
from taciturn.sdk.login import password_token, redeem_link

PEOPLE: Mapping[str, str] = {
    "olivia": "owner",
    "amir": "owner",
    "bea": "owner",
    "pia": "practitioner",
    "axel": "auditor",
}
"""Who there is: the owner of the notes, two approvers, a practitioner, an auditor."""

_TOKEN = re.compile(r"tac_[0-9a-z]{20}_[\w-]+")
_START_S = 120.0


@dataclass
class DemoGateway:
    """A running gateway in a folder of its own; `stop` ends it and removes the folder.

    Attributes:
        notes: Parquet file of invented patient notes, which the gateway never opens.
        units: how many patients they are of.
        trust: the public key that its certificates are checked with.
    """

    url: str
    folder: Path
    notes: Path
    units: int
    trust: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    _admin: str = field(repr=False)
    _passwords: dict[str, str] = field(repr=False)
    _folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def client(self, name: str) -> Client:
        """Log somebody of PEOPLE in, or the administrator as "admin"."""
        return Client(self.url, self.token(name))

    def token(self, name: str) -> str:
        """A token of somebody's, for other clients."""
        if name == "admin":
            return self._admin
        return password_token(self.url, name, self._passwords[name])

    def password(self, name: str) -> str:
        """The password of somebody of PEOPLE, for the console."""
        return self._passwords[name]

    def put_into_train(self, dataset: str, unit: str) -> None:
        """Have a unit on the training side of every split that holds out at most half.

        Which side a unit is on is decided by a secret key, and nobody who uses the gateway can see
        or choose it. A demonstration needs its patient on that side every time, so its operator
        draws another key, before the first job.
        """
        key = secrets.token_bytes(32)
        while is_test(key, unit, 0.5):
            key = secrets.token_bytes(32)
        with contextlib.closing(
            sqlite3.connect(self.folder / "gateway" / "gateway.db")
        ) as database:
            database.execute(
                "UPDATE datasets SET split_key = ? WHERE name = ?", (key.hex(), dataset)
            )
            database.commit()

    def stop(self) -> None:
        """End the gateway and its workers, and remove everything it kept."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


def start(n_patients: int = 200, seed: int = 0) -> DemoGateway:
    """Start `taciturn serve` on a free port of this machine, in a temporary folder.

    Raises:
        UnavailableError: it did not start; the end of its log is in the message.
    """
    temporary = tempfile.TemporaryDirectory(prefix="taciturn-demo-", ignore_cleanup_errors=True)
    folder = Path(temporary.name)
    notes = folder / "notes.parquet"
    pd.DataFrame(patient_notes(seed, n_patients)).to_parquet(notes)
    key = write_key(
        folder / "demo-key",
        name="demonstration",
        valid_from=datetime.now(UTC) - timedelta(hours=1),
        days=2,
        password=None,
    )
    port = _free_port()
    process = _serve(folder, port, key.private, notes)
    url = f"http://127.0.0.1:{port}"
    try:
        admin = _admin_token(process, url, folder)
        passwords = {name: secrets.token_urlsafe(18) for name in PEOPLE}
        with Client(url, admin) as client:
            for name, role in PEOPLE.items():
                client.admin.add_user(name, [role])
                redeem_link(client.admin.password_link(name).url, passwords[name])
    except BaseException:
        process.kill()
        process.wait()
        temporary.cleanup()
        raise
    return DemoGateway(
        url, folder, notes, n_patients, key.trust, process, admin, passwords, temporary
    )


def _serve(folder: Path, port: int, key: Path, notes: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TACITURN_DATA_DIR": str(folder / "gateway"),
        "TACITURN_PORT": str(port),
        "TACITURN_SIGNING_KEY": str(key),
        "TACITURN_SOURCE_PREFIXES": json.dumps([str(notes)]),
        # The notes are invented: how long their steps take may be seen.
        "TACITURN_TICK_S": "1",
    }
    with (folder / "gateway.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "taciturn", "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _admin_token(process: subprocess.Popen[bytes], url: str, folder: Path) -> str:
    """The token that the first start prints, once the gateway answers."""
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        match = _TOKEN.search(_log(folder))
        with contextlib.suppress(httpx.TransportError):
            if match is not None and httpx.get(f"{url}/v1/health", timeout=5).status_code < 500:
                return match[0]
        time.sleep(0.2)
    raise UnavailableError(f"the gateway did not start: {_log(folder)[-2000:]}")


def _log(folder: Path) -> str:
    return (folder / "gateway.log").read_text(encoding="utf-8", errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
