"""Whether torchrun started this process is told by its variables."""

from __future__ import annotations

import pytest

from taciturn.engine.training.torchrun import is_first_process, started_together

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_torchrun_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert started_together()
    assert not is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not started_together()


@pytest.mark.parametrize("name", TORCHRUN)
def test_without_one_of_its_variables_a_process_is_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other, value in TORCHRUN.items():
        monkeypatch.setenv(other, value)
    monkeypatch.delenv(name)
    assert not started_together()
    assert is_first_process()
