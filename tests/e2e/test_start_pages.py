"""The quickstarts, copied and run as they are written, in an empty folder with an empty home.

A comment before a block says what is not run, and why; `background` marks what stays running. What
a person would type when they are asked comes from here.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.code_blocks import Block, copied

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

_PORT = "8321"


@dataclass
class Reader:
    """Somebody who copies commands into a shell, in one folder."""

    folder: Path
    environment: dict[str, str]

    def run(self, block: Block, typed: str = "") -> str:
        """Run a block; returns what it prints."""
        program = ["bash", "-e", "-c", block.code]
        if block.language == "python":
            program = [sys.executable, "-c", block.code]
        done = subprocess.run(
            program,
            cwd=self.folder,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def running(self, block: Block) -> Iterator[Path]:
        """Run a block in the background; yields the file with what it prints."""
        log = self.folder / "background.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                ["bash", "-c", block.code],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield log
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(240)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    return Reader(tmp_path, environment)


def test_one_machine(reader: Reader, root: Path) -> None:
    output = [reader.run(block) for block in copied(root / "docs" / "start" / "local.md")]
    text = "\n".join(output)
    assert text.count("DP (epsilon=") >= 2
    assert "base model  taciturn/tiny-medical" in text, "the certificate was verified"


def test_a_gateway(reader: Reader, root: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(_PORT))) == 0:
            pytest.skip(f"port {_PORT} is taken")
    notes, gateway, admin, passwords, olivia, pia, sample = copied(
        root / "docs" / "start" / "gateway.md"
    )
    assert gateway.comment == "background"
    reader.run(notes)
    secrets = {"olivia": "a long sentence of olivia", "pia": "a long sentence of pia"}
    with reader.running(gateway) as log:
        token = _token(log)
        links = re.findall(r"http://\S+", reader.run(admin, f"{token}\n"))
        links = [link for link in links if link != f"http://127.0.0.1:{_PORT}"]
        lines = passwords.code.splitlines()
        for line, link, word in zip(lines, links, secrets.values(), strict=True):
            # One at a time, as people type: the first of two would read ahead.
            reader.run(Block("", "sh", line), f"{link}\n{word}\n{word}\n")
        reader.run(olivia, secrets["olivia"] + "\n")
        text = reader.run(pia, secrets["pia"] + "\n")
        assert "DP (epsilon=" in text
        model = re.findall(r"\bmodel_\w{20}\b", text)[0]
        asked = Block("", "sh", sample.code.replace("MODEL_ID", model))
        assert "The patient was admitted with" in reader.run(asked)


def _token(log: Path) -> str:
    """Return the first administrator's token, once the gateway has printed it."""
    for _ in range(3000):
        match = re.search(r"tac_\w{20}_[\w-]+", log.read_text(encoding="utf-8"))
        if match and "startup complete" in log.read_text(encoding="utf-8"):
            return match[0]
        time.sleep(0.2)
    raise AssertionError(log.read_text(encoding="utf-8"))
