"""Workers as processes of this machine."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from contracts.launchers import LauncherContract, until
from taciturn.server.launchers.base import Launcher, LaunchError, Order, WorkerState
from taciturn.server.launchers.local import FullError, LocalLauncher

PROGRAM = """
if [ "$PROGRAM" = stubborn ]; then trap '' TERM; fi
echo x >> "$TACITURN_WORKSPACE/started"
env > "$TACITURN_WORKSPACE/environment"
case "$PROGRAM" in
    sleep) exec sleep 60 ;;
    stubborn) while :; do sleep 0.05; done ;;
esac
"""
COMMAND = ("/bin/sh", "-c", PROGRAM)


class TestLocalLauncher(LauncherContract):
    @pytest.fixture
    def made(self, tmp_path: Path) -> Launcher:
        return LocalLauncher(tmp_path / "workspaces", command=COMMAND)

    def restarted(self, made: Launcher) -> Launcher:
        assert isinstance(made, LocalLauncher)
        return LocalLauncher(made.folder, command=COMMAND)

    def starts(self, made: Launcher, order: Order) -> int:
        assert isinstance(made, LocalLauncher)
        started = made.folder / order.job_id / "workspace" / "started"
        return len(started.read_text().splitlines()) if started.exists() else 0


def test_a_worker_gets_no_variable_that_is_not_on_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TACITURN_LEDGER_KEY", "TACITURN_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_PROFILE", "data")
    launcher = LocalLauncher(tmp_path / "w", ("AWS_PROFILE",), command=COMMAND)
    handle = launcher.launch(Order("job_1", 1, {"PROGRAM": "end", "TACITURN_JOB_TOKEN": "tac_x"}))
    until(lambda: launcher.status(handle) is WorkerState.ENDED)
    text = (tmp_path / "w" / "job_1" / "workspace" / "environment").read_text()
    assert "secret" not in text
    assert "AWS_PROFILE=data" in text
    assert "TACITURN_JOB_TOKEN=tac_x" in text


def test_nobody_else_can_look_into_a_workspace(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "w", command=COMMAND)
    handle = launcher.launch(Order("job_1", 1, {"PROGRAM": "end"}))
    until(lambda: launcher.status(handle) is WorkerState.ENDED)
    job = tmp_path / "w" / "job_1"
    for path in (tmp_path / "w", job, job / "1", job / "workspace"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((job / "1" / "log").stat().st_mode) == 0o600


def test_a_process_that_has_the_same_id_by_chance_is_another_one(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "w", command=COMMAND)
    handle = launcher.launch(Order("job_1", 1, {"PROGRAM": "end"}))
    until(lambda: launcher.status(handle) is WorkerState.ENDED)
    born = tmp_path / "w" / "job_1" / "1" / "born"
    _, _, rest = born.read_text().partition(" ")
    born.write_text(f"{os.getpid()} {rest}")
    assert launcher.status(handle) is WorkerState.ENDED
    launcher.stop(handle, 0)  # and does not end us


def test_a_worker_is_the_head_of_a_session_of_its_own(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "w", command=COMMAND)
    handle = launcher.launch(Order("job_1", 1, {"PROGRAM": "sleep"}))
    born = tmp_path / "w" / "job_1" / "1" / "born"
    until(born.exists)
    pid = int(born.read_text().split()[0])
    assert os.getsid(pid) == pid != os.getsid(0)
    launcher.stop(handle, 0)
    until(lambda: launcher.status(handle) is WorkerState.ENDED)
    until(lambda: launcher.alive() == () and not Path(f"/proc/{pid}").exists())  # no zombie


@pytest.mark.parametrize("handle", ["../x-1", "a/b-1", "job_1", "job_1-x", "-1"])
def test_a_handle_is_no_path(tmp_path: Path, handle: str) -> None:
    launcher = LocalLauncher(tmp_path / "w", command=COMMAND)
    with pytest.raises(LaunchError):
        launcher.status(handle)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EAGAIN, FullError), (errno.ENOMEM, FullError), (errno.ENOENT, None)]
)
def test_a_machine_without_room_is_worth_waiting_for(
    tmp_path: Path, number: int, kind: type[LaunchError] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, order = LocalLauncher(tmp_path / "w", command=COMMAND), Order("job_1", 1, {})
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", Mock(side_effect=OSError(number, "no")))
        with pytest.raises(LaunchError) as caught:
            launcher.launch(order)
    assert isinstance(caught.value, FullError) is (kind is FullError)
    assert launcher.status(order.handle) is WorkerState.ABSENT


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "w", command=COMMAND)
    (tmp_path / "w" / "job_1").write_text("in the way")
    with pytest.raises(LaunchError):
        launcher.launch(Order("job_1", 1, {}))
