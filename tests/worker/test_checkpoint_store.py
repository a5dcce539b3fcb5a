"""Copies of checkpoints in a store: whole or not at all, sealed, in their place, and each worker's
own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem

from taciturn.errors import OutputError, SpecError
from taciturn.worker import checkpoint_store as vaults
from taciturn.worker.checkpoint_store import CheckpointStore, patiently
from taciturn.worker.encryption import SealError
from worker.safes import JOB, KEY, objects, restored, run, swapped, vault


def test_a_run_comes_back_on_an_empty_disk(tmp_path: Path) -> None:
    private = run(tmp_path / "output", 10)
    vault(tmp_path / "store").of(JOB, 1).keep(private)
    output = tmp_path / "elsewhere" / "output"
    output.parent.mkdir()
    assert vault(tmp_path / "store").of(JOB, 2).restore(output, None) == 10
    names = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    assert names == {
        "private/checkpoints/step-00000010/identity.json",
        "private/checkpoints/step-00000010/state.safetensors",
        "private/data/canaries.json",
        "private/data/tokens.arrow",
        "private/journal.jsonl",
    }
    for name in names:
        assert (output / name).read_bytes() == (private.parent / name).read_bytes()
        assert (output / name).stat().st_mode & 0o077 == 0
    assert not list(output.parent.glob(".*"))


def test_the_newest_is_taken_and_only_if_it_is_newer(tmp_path: Path) -> None:
    safe = vault(tmp_path / "store").of(JOB, 1)
    for step in (0, 10, 20):
        safe.keep(run(tmp_path / "output", step))
    assert restored(safe, tmp_path)[0] == 20
    assert restored(safe, tmp_path, above=10)[0] == 20
    output = tmp_path / "output"
    assert safe.restore(output, 20) is None
    assert (output / "private" / "checkpoints" / "step-00000000").exists()


def test_there_is_nothing_before_the_first(tmp_path: Path) -> None:
    assert restored(vault(tmp_path / "store").of(JOB, 1), tmp_path) == (None, "")


def test_prepared_rows_are_sent_once_and_old_checkpoints_go(tmp_path: Path) -> None:
    store = tmp_path / "store"
    safe = vault(store).of(JOB, 1)
    sizes = []
    for step in range(0, 60, 10):
        safe.keep(run(tmp_path / "output", step))
        sizes.append(sum(path.stat().st_size for path in objects(store)))
    assert sizes[-1] == sizes[2]
    assert sum(path.stat().st_size > 14_000 for path in objects(store)) == 1
    # A successor names what its predecessor has sent, and does not send it again.
    second = vault(store).of(JOB, 2)
    (tmp_path / "taken").mkdir()
    assert second.restore(tmp_path / "taken" / "output", None) == 50
    second.keep(run(tmp_path / "taken" / "output", 60))
    assert sum(path.stat().st_size > 14_000 for path in objects(store)) == 1
    assert restored(vault(store).of(JOB, 3), tmp_path) == (60, "mine")


def test_a_checkpoint_is_kept_once(tmp_path: Path) -> None:
    """Asked for again, as when a machine is taken away between two steps."""
    store = tmp_path / "store"
    safe = vault(store).of(JOB, 1)
    for step in (0, 10):
        private = run(tmp_path / "output", step)
        for _ in range(4):
            safe.keep(private)
    assert restored(safe, tmp_path) == (10, "mine")
    assert len([path for path in objects(store) if path.suffix == ".manifest"]) == 2


@pytest.mark.parametrize("which", ["manifest", "object"])
@pytest.mark.parametrize("how", ["gone", "cut", "changed", "empty"])
def test_a_damaged_one_is_passed_over(which: str, how: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    safe = vault(store).of(JOB, 1)
    for step in (10, 20):
        safe.keep(run(tmp_path / "output", step))
    for path in objects(store, 20):
        if (path.suffix == ".manifest") != (which == "manifest"):
            continue
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            kept = {"cut": content[:-20], "empty": b"", "changed": content[:-1] + b"?"}
            path.write_bytes(kept[how])
    assert restored(safe, tmp_path) == (10, "mine")


def cut_off_after(objects_written: int) -> Callable[..., None]:
    """`CheckpointStore._write` of a worker that is killed at its next object."""
    real, left = CheckpointStore._write, [None] * objects_written

    def dying(self: CheckpointStore, place: Any, source: Any, target: str) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        real(self, place, source, target)

    return dying


def test_an_upload_that_was_cut_off_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = vault(tmp_path / "store").of(JOB, 1)
    safe.keep(run(tmp_path / "output", 10))
    private = run(tmp_path / "output", 20)
    for number in range(4):  # state, identity, journal, manifest
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "_write", cut_off_after(number))
            with pytest.raises(KeyboardInterrupt):
                safe._keep(private, 20)
        assert restored(safe, tmp_path)[0] == 10
    safe._keep(private, 20)
    assert restored(safe, tmp_path)[0] == 20


def exchange(store: Path, folder: Path) -> list[tuple[Path, Path]]:
    """Pairs of objects under one key that an intruder could exchange: of two steps, of two files,
    of two jobs, of two workers of one job."""
    first = vault(store).of(JOB, 1)
    for step in (10, 20):
        first.keep(run(folder / "first", step, "first"))
    vault(store).of(JOB, 2).keep(run(folder / "second", 20, "second"))
    vault(store).of("job_other", 2).keep(run(folder / "other", 20, "other"))
    mine, later = store / JOB / f"{1:08d}", store / JOB / f"{2:08d}"
    others = objects(store / "job_other" / f"{2:08d}")
    everything = [*objects(mine), *objects(later), *others]
    return [(one, two) for one, two in combinations(everything, 2)]


def check_exchanges(store: Path, folder: Path) -> None:
    """Whatever is exchanged: what is restored is one run of this job, at its step."""
    later, away = store / JOB / f"{2:08d}", store / "away"
    for one, two in exchange(store, folder):
        swapped(one, two)
        hidden = later not in (one.parent, two.parent)  # or nobody would look at the older ones
        if hidden:
            later.rename(away)
        step, tag = restored(vault(store).of(JOB, 3), folder)
        assert (step, tag) in [(20, "second"), (20, "first"), (10, "first"), (None, "")]
        if hidden:
            away.rename(later)
        swapped(one, two)


def test_exchanged_objects_are_never_taken(tmp_path: Path) -> None:
    check_exchanges(tmp_path / "store", tmp_path)


def test_another_jobs_folder_is_not_this_ones(tmp_path: Path) -> None:
    """All of a job's objects under another job's name."""
    store = tmp_path / "store"
    vault(store).of("job_other", 1).keep(run(tmp_path / "output", 10))
    (store / "job_other").rename(store / JOB)
    assert restored(vault(store).of(JOB, 2), tmp_path) == (None, "")


def test_a_zombie_touches_nothing_of_its_successor(tmp_path: Path) -> None:
    store = tmp_path / "store"
    zombie = vault(store).of(JOB, 1)
    for step in (0, 10):
        zombie.keep(run(tmp_path / "zombie", step))
    successor = vault(store).of(JOB, 2)
    (tmp_path / "next").mkdir()
    assert successor.restore(tmp_path / "next" / "output", None) == 10
    successor.keep(run(tmp_path / "next" / "output", 20))
    own = {path: path.read_bytes() for path in objects(store / JOB / f"{2:08d}")}
    for step in (20, 30, 40, 50):
        zombie.keep(run(tmp_path / "zombie", step, "zombie"))
    assert {path: path.read_bytes() for path in own} == own
    for path in objects(store / JOB / f"{1:08d}"):
        if path.name.startswith(("00000030", "00000040", "00000050")):
            path.unlink()
    assert restored(vault(store).of(JOB, 3), tmp_path) == (20, "mine")


def test_another_key_is_not_taken_for_no_checkpoint(tmp_path: Path) -> None:
    store = tmp_path / "store"
    vault(store).of(JOB, 1).keep(run(tmp_path / "output", 10))
    with pytest.raises(SpecError, match="TACITURN_CHECKPOINT_KEY"):
        restored(vault(store, bytes(32)).of(JOB, 2), tmp_path)


def test_a_store_that_does_not_answer_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = vault(tmp_path / "store").of(JOB, 1)
    safe.keep(run(tmp_path / "output", 10))

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to a patient's host")

    monkeypatch.setattr(safe.store.files, "ls", unreachable)
    with pytest.raises(OutputError, match="ConnectionError") as caught:
        restored(safe, tmp_path)
    assert "patient" not in str(caught.value)


def test_a_store_that_takes_nothing_ends_a_fit_before_it_begins_and_not_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = vault(tmp_path / "store").of(JOB, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_write", full)
        with pytest.raises(OutputError):
            safe.keep(run(tmp_path / "output", 0))
    safe.keep(run(tmp_path / "output", 10))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_write", full)
        safe.keep(run(tmp_path / "output", 20))
    assert "no copy of the checkpoint" in capsys.readouterr().err
    assert restored(safe, tmp_path)[0] == 10


def test_a_store_that_comes_back_is_waited_for() -> None:
    failures = [OSError("one"), ValueError("two")]

    def flaky() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert patiently(flaky, 30) == "done"


def test_what_is_over_is_removed_for_all_workers(tmp_path: Path) -> None:
    store = tmp_path / "store"
    vault(store).of(JOB, 1).keep(run(tmp_path / "one", 10))
    safe = vault(store).of(JOB, 2)
    safe.keep(run(tmp_path / "two", 20))
    other = vault(store).of("job_other", 1)
    other.keep(run(tmp_path / "three", 20))
    safe.remove()
    safe.remove()
    assert not (store / JOB).exists()
    assert restored(other, tmp_path)[0] == 20


def test_canaries_are_kept_under_their_commitment(tmp_path: Path) -> None:
    place = vault(tmp_path / "store")
    path = tmp_path / "canaries.json"
    path.write_bytes(b"texts and coins")
    place.keep_canaries(path, "ab" * 32)
    assert place.canaries("ab" * 32) == b"texts and coins"
    assert place.canaries("cd" * 32) is None
    kept = tmp_path / "store" / "canaries"
    (kept / ("ab" * 32)).rename(kept / ("cd" * 32))
    with pytest.raises(SealError):
        place.canaries("cd" * 32)


@pytest.mark.parametrize("kind", ["memory", "arrow"])
def test_an_object_store(kind: str, tmp_path: Path) -> None:
    """By fsspec's own file systems, and by those of Arrow, which speak to S3."""
    if kind == "memory":
        opened = CheckpointStore.open(f"memory://vault-{tmp_path.name}", KEY)
    else:
        files = ArrowFSWrapper(LocalFileSystem())
        opened = CheckpointStore(files, str(tmp_path / "store"), KEY, patience_s=0.5)
    safe = opened.of(JOB, 1)
    for step in (0, 10, 20, 30):
        safe.keep(run(tmp_path / "output", step))
    assert restored(opened.of(JOB, 2), tmp_path) == (30, "mine")
    safe.remove()
    assert restored(opened.of(JOB, 3), tmp_path) == (None, "")


@pytest.mark.parametrize("url", ["nonsense://bucket/x"])
def test_a_protocol_that_nobody_knows_is_refused(url: str) -> None:
    with pytest.raises(SpecError, match="nonsense"):
        CheckpointStore.open(url, KEY)


def test_a_key_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="16 bytes"):
        CheckpointStore.open(str(tmp_path), bytes(16))


def test_the_key_is_shown_nowhere(tmp_path: Path) -> None:
    opened = vault(tmp_path)
    for shown in (repr(opened), repr(opened.of(JOB, 1)), str(vaults.Place(JOB, 1, 1, "x"))):
        assert KEY.hex() not in shown
        assert "\\x01\\x02\\x03" not in shown
