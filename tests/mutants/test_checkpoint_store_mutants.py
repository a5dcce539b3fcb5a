"""Ways in which copies of checkpoints would be trusted that must not be: each is killed by the
check that is for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from taciturn.worker import encryption
from taciturn.worker.checkpoint_store import JobCheckpoints
from taciturn.worker.encryption import Place
from worker.safes import JOB, objects, restored, run, vault
from worker.test_checkpoint_store import check_exchanges

Patch = pytest.MonkeyPatch
Check = Callable[[Path], None]
PIECE_BYTES = 4000
"""Small, so that files have several pieces; not so small that a check is all about pieces."""


def in_its_place(folder: Path) -> None:
    check_exchanges(folder / "store", folder)


def whole(folder: Path) -> None:
    """What is cut off between two pieces is passed over."""
    safe = vault(folder / "store").of(JOB, 1)
    safe.keep(run(folder / "output", 10))
    safe.keep(run(folder / "output", 20, size=400))
    for path in objects(folder / "store", 20):
        if path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[: 58 + PIECE_BYTES + 16])
    assert restored(safe, folder)[0] == 10


def last_of_all(folder: Path) -> None:
    """A manifest is never there before what it names."""
    safe, seen = vault(folder / "store").of(JOB, 1), []
    real = safe.store.files.open

    def noting(path: str, mode: str = "rb") -> object:
        if mode == "wb":
            seen.append(path)
        return real(path, mode)

    safe.store.files.open = noting
    try:
        safe.keep(run(folder / "output", 10))
    finally:
        del safe.store.files.open
    assert seen[-1].endswith(".manifest")
    assert sum(path.endswith(".manifest") for path in seen) == 1


def ones_own(folder: Path) -> None:
    """A fenced worker writes nothing where another one does."""
    for lease in (1, 2):
        vault(folder / "store").of(JOB, lease).keep(run(folder / f"of-{lease}", 10))
    before = {path: path.read_bytes() for path in objects(folder / "store")}
    vault(folder / "store").of(JOB, 1).keep(run(folder / "again", 10, "zombie"))
    changed = [p for p, kept in before.items() if p.read_bytes() != kept]
    assert all(path.parent.name == f"{1:08d}" for path in changed)


def unbound(patch: Patch) -> None:
    patch.setattr(encryption, "associated", lambda place: b"")


def bound_but_for(field: str) -> Callable[[Patch], None]:
    real = encryption.associated

    def mutant(patch: Patch) -> None:
        empty = {"job": "", "lease": 0, "step": 0, "name": ""}[field]
        patch.setattr(
            encryption, "associated", lambda place: real(replace(place, **{field: empty}))
        )

    return mutant


def no_last_piece(patch: Patch) -> None:
    patch.setattr(encryption, "_nonce", lambda number, last: number.to_bytes(12, "big"))


def one_folder(patch: Patch) -> None:
    patch.setattr(
        JobCheckpoints, "_at", lambda self, lease, *names: self.store.at(self.job, "1", *names)
    )


def manifest_first(patch: Patch) -> None:
    real = JobCheckpoints._keep

    def early(self: JobCheckpoints, private: Path, step: int) -> None:
        place = Place(self.job, self.lease, step, "manifest")
        self.store.seal_bytes(place, b"{}", self._at(self.lease, f"{step:08d}.manifest"))
        real(self, private, step)

    patch.setattr(JobCheckpoints, "_keep", early)


MUTANTS: list[tuple[Callable[[Patch], None], Check]] = [
    (unbound, in_its_place),
    (bound_but_for("job"), in_its_place),
    (bound_but_for("lease"), in_its_place),
    (bound_but_for("step"), in_its_place),
    (bound_but_for("name"), in_its_place),
    (no_last_piece, whole),
    (one_folder, ones_own),
    (manifest_first, last_of_all),
]
IDS = [
    *("unbound", "any job", "any lease", "any step", "any name"),
    *("no last piece", "one folder", "manifest first"),
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: Patch) -> None:
    monkeypatch.setattr(encryption, "_PIECE_BYTES", PIECE_BYTES)


@pytest.mark.parametrize("check", [in_its_place, whole, last_of_all, ones_own])
def test_the_vault_passes(check: Check, tmp_path: Path) -> None:
    check(tmp_path)


@pytest.mark.parametrize(("mutant", "check"), MUTANTS, ids=IDS)
def test_the_mutant_is_killed(
    mutant: Callable[[Patch], None], check: Check, tmp_path: Path, monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path)
