"""Vaults in a folder, runs without a model, and what an intruder does to a store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from taciturn.worker.checkpoint_store import CheckpointStore, JobCheckpoints

KEY = bytes(range(32))
JOB = "job_0000000000000001"


def vault(folder: Path, key: bytes = KEY) -> CheckpointStore:
    """A vault in a folder."""
    opened = CheckpointStore.open(str(folder), key)
    return CheckpointStore(opened.files, opened.root, key, patience_s=0.5)


def run(folder: Path, step: int, tag: str = "mine", size: int = 1) -> Path:
    """A run's private folder with a checkpoint of this step. Every file says what it is, and whose;
    the state says so `size` times."""
    private = folder / "private"
    data, checkpoint = private / "data", private / "checkpoints" / f"step-{step:08d}"
    if not data.exists():
        data.mkdir(parents=True)
        (data / "tokens.arrow").write_text(f"tokens.arrow of {tag}\n" * 1000)
        (data / "canaries.json").write_text(f"canaries.json of {tag}\n")
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.safetensors").write_text(f"state.safetensors {step} of {tag}\n" * size)
    (checkpoint / "identity.json").write_text(f"identity.json {step} of {tag}\n")
    (private / "journal.jsonl").write_text(f"journal.jsonl {step} of {tag}\n")
    partial = private / "checkpoints" / ".partial-1"
    partial.mkdir(exist_ok=True)
    (partial / "state.safetensors").write_text("begun")
    return private


def restored(
    safe: JobCheckpoints, folder: Path, above: int | None = None
) -> tuple[int | None, str]:
    """The step that comes back on an empty disk, and whose it is; fails if it is no one run's."""
    output = folder / f"machine-{os.urandom(4).hex()}" / "output"
    output.parent.mkdir(parents=True)
    step = safe.restore(output, above)
    if step is None:
        return None, ""
    said = {}
    for path in output.rglob("*"):
        if path.is_file():
            name, _, rest = path.read_text().splitlines()[0].partition(" ")
            assert name == path.name, "a file is there as another one"
            said[name] = rest
    steps = {said[name].split()[0] for name in said if not name.startswith(("tokens", "canaries"))}
    assert steps == {str(step)}, "files of several steps are there as one"
    tags = {rest.rpartition(" ")[2] for rest in said.values()}
    assert len(tags) == 1, "files of several runs are there as one"
    assert len(said) == 5
    return step, tags.pop()


def objects(store: Path, step: int | None = None) -> list[Path]:
    """All files of a store, or those that were written with a step."""
    found = sorted(path for path in store.rglob("*") if path.is_file())
    return [p for p in found if step is None or p.name.startswith(f"{step:08d}")]


def swapped(one: Path, other: Path) -> None:
    """Two objects in each other's place."""
    kept = one.read_bytes()
    shutil.copyfile(other, one)
    other.write_bytes(kept)
