"""Files that a run leaves on disk so that `kill -9` at any moment loses at most a few steps.

A checkpoint holds released weights and public settings; it never holds a random stream. A resumed
run draws its units and its noise from fresh keys, and redoes the steps after the last checkpoint:
what those steps had produced was never released, so epsilon stays that of the planned steps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy.ranks import Ranks
from taciturn.errors import CheckpointError, OutputError

_KEPT = 2


@contextmanager
def full_disk_is_clear(folder: Path) -> Iterator[None]:
    """Turn an operating-system error while writing into an OutputError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{folder} cannot be written: {reason}; free some space and run it again (a fit that "
            "had begun with --resume), or choose another folder"
        ) from error


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Checkpoints of one run in a private folder, newest last."""

    folder: Path

    def save(self, tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> Path:
        """Write atomically: a checkpoint is there whole or not at all.

        Args:
            tensors: TrainingState.tensors(), with "step".
            identity: what must be equal for a resume to make sense (plan, data fingerprint).
        """
        final = self.folder / f"step-{int(tensors['step']):08d}"
        partial = self.folder / f".partial-{os.getpid()}"
        with full_disk_is_clear(self.folder):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                tensors_on_cpu = {
                    name: value.detach().cpu().contiguous() for name, value in tensors.items()
                }
                save_file(tensors_on_cpu, partial / "state.safetensors")
                content = json.dumps(dict(identity), sort_keys=True)
                (partial / "identity.json").write_text(content, encoding="utf-8")
                _sync(partial)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        for old in self.paths()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def load(self, identity: Mapping[str, Any]) -> dict[str, Tensor]:
        """The newest checkpoint; raises CheckpointError if absent, damaged, or of another job."""
        paths = self.paths()
        if not paths:
            raise CheckpointError(f"no checkpoint in {self.folder}; run without --resume")
        try:
            saved = json.loads((paths[-1] / "identity.json").read_text(encoding="utf-8"))
            tensors = load_file(paths[-1] / "state.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {paths[-1]} is damaged ({type(error).__name__}); delete that folder "
                "to resume from the one before, or run without --resume"
            ) from error
        _same(saved, json.loads(json.dumps(dict(identity))))
        return tensors


def all_rows(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Content of a checkpoint: `TrainingState.tensors()` with the rows of all processes.

    It is the same for any number of processes, so a job may be resumed with another number. Every
    process calls this; rank 0 alone keeps the result, in the CPU's memory.
    """
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        parameter = parameters.get(key.partition("/")[2])
        if isinstance(parameter, DTensor):
            value = ranks.whole({key: value}, {key: parameter.shape})[key]
        if ranks.first:
            out[key] = value.cpu()
    return out


def own_rows(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """The inverse of `all_rows`: of sharded parameters, the rows of this process."""
    sharded = {name for name, value in parameters.items() if isinstance(value, DTensor)}
    return {
        key: value[ranks.own_rows(len(value))] if key.partition("/")[2] in sharded else value
        for key, value in tensors.items()
    }


def _same(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key in sorted(set(saved) | set(expected)):
        if saved.get(key) == expected.get(key):
            continue
        if isinstance(saved.get(key), dict) and isinstance(expected.get(key), dict):
            _same(saved[key], expected[key])  # the one setting that differs, not all beside it
            continue
        if key == "data":
            raise CheckpointError("the checkpoint belongs to other data; run without --resume")
        raise CheckpointError(
            f"the checkpoint was made with {key}={saved.get(key)!r}, this job has "
            f"{expected.get(key)!r}; use the same settings, or run without --resume"
        )


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class StepJournal:
    """Append-only record of what ran, one JSON object a line; in the private folder.

    It names each process's random streams by a hash of their keys, so that a re-used stream would
    show.
    """

    path: Path

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry and flush it to the operating system."""
        with full_disk_is_clear(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(entry)) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """All complete entries; a line cut off by a crash is left out."""
        if not self.path.exists():
            return []
        out = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                out.append(json.loads(line))
            except ValueError:
                continue
        return out
