"""Processes agree, fail together, and never wait for one that failed."""

from __future__ import annotations

import pytest
import torch

from support.ranks import in_threads
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.training.processes import (
    agree,
    all_processes,
    any_process,
    tell,
    together,
)
from taciturn.errors import DataError, SpecError


def outcomes(size: int, failing: int, error: Exception) -> list[str]:
    def on_rank(ranks: Ranks) -> str:
        try:
            with together(ranks):
                if ranks.rank == failing:
                    raise error
        except Exception as raised:
            return f"{type(raised).__name__}: {raised}"
        return "went on"

    return in_threads(size, on_rank)


def test_one_failure_is_everybodys() -> None:
    own, first, last = outcomes(3, 0, DataError("column 'text' is not there"))
    assert own == "DataError: column 'text' is not there"
    for other in (first, last):
        assert other.startswith("ProcessError: process 0 of 3 failed: DataError: column 'text'")


def test_words_of_others_errors_are_not_passed_on() -> None:
    """A library's error may quote a row; its name does not."""
    own, other = outcomes(2, 0, ValueError("François Dupont suffers"))
    assert own.startswith("ValueError")
    assert other == "ProcessError: process 0 of 2 failed: ValueError"


def test_no_failure_goes_on() -> None:
    assert outcomes(3, -1, DataError("")) == ["went on"] * 3


def test_alone_errors_pass_through() -> None:
    with pytest.raises(DataError), together(ALONE):
        raise DataError("x")


def test_ctrl_c_does_not_wait() -> None:
    ranks = Ranks(rank=0, size=2)  # has no connection: would fail if it were used
    with pytest.raises(KeyboardInterrupt), together(ranks):
        raise KeyboardInterrupt


def test_texts_and_flags_reach_everybody() -> None:
    texts = in_threads(3, lambda ranks: tell(ranks, f"ε of {ranks.rank}"))
    assert texts == [["ε of 0", "ε of 1", "ε of 2"]] * 3
    assert in_threads(3, lambda ranks: any_process(ranks, ranks.rank == 2)) == [True] * 3
    assert in_threads(3, lambda ranks: any_process(ranks, False)) == [False] * 3


def test_different_settings_are_refused() -> None:
    with pytest.raises(SpecError, match="different settings"):
        in_threads(2, lambda ranks: agree(ranks, "settings", str(ranks.rank)))
    in_threads(2, lambda ranks: agree(ranks, "settings", "same"))


def test_without_torchrun_nothing_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with all_processes(torch.device("cpu")) as ranks:
        assert ranks == ALONE
        assert not torch.distributed.is_initialized()
