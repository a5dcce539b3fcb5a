"""Checkpoints are there whole or not at all, and know which job they belong to."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from taciturn.engine.training import checkpoint
from taciturn.engine.training.checkpoint import CheckpointStore, StepJournal, full_disk_is_clear
from taciturn.errors import CheckpointError, OutputError

IDENTITY = {"steps": 10, "data": "abc"}


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor([step]), "master/w": torch.full((3,), float(step))}


def test_newest_complete_checkpoint_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 5, 9):
        store.save(tensors(step), IDENTITY)
    (tmp_path / ".partial-1").mkdir()
    assert [path.name for path in store.paths()] == ["step-00000005", "step-00000009"]
    assert float(store.load(IDENTITY)["master/w"][0]) == 9.0


def test_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without --resume"):
        CheckpointStore(tmp_path).load(IDENTITY)


@pytest.mark.parametrize(
    ("identity", "message"),
    [({"steps": 11, "data": "abc"}, "steps=10"), ({"steps": 10, "data": "xyz"}, "other data")],
)
def test_another_job_is_refused(tmp_path: Path, identity: dict[str, object], message: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(tensors(1), IDENTITY)
    with pytest.raises(CheckpointError, match=message):
        store.load(identity)


def test_data_fingerprint_is_not_quoted(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(tensors(1), IDENTITY)
    with pytest.raises(CheckpointError) as caught:
        store.load({"steps": 10, "data": "xyz"})
    assert "abc" not in str(caught.value)
    assert "xyz" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    folder = CheckpointStore(tmp_path).save(tensors(1), IDENTITY)
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-2] if damage is None else damage)
    with pytest.raises(CheckpointError, match="damaged"):
        CheckpointStore(tmp_path).load(IDENTITY)


def test_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(tensors(1), IDENTITY)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        store.save(tensors(2), IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert float(store.load(IDENTITY)["master/w"][0]) == 1.0


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), full_disk_is_clear(tmp_path):
        raise KeyError("x")


def test_journal_skips_a_line_cut_off_by_a_crash(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path / "journal.jsonl")
    journal.write({"step": 1})
    journal.write({"step": 2})
    with journal.path.open("a") as file:
        file.write('{"step": ')
    assert journal.entries() == [{"step": 1}, {"step": 2}]
