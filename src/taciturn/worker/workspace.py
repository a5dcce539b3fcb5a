"""Private state of a job: one folder per job, which only its worker's user can open."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taciturn.data.tokens.planted import CANARIES
from taciturn.errors import OutputError, SpecError
from taciturn.reports.privacy import DATA, PRIVATE, REPORT

CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,100}$")


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one job.

    What is in it:
        output/             what the engine wrote: the released files, and `private/` below it
        output.complete     the released files are all there
        base/               tokenizer and configuration as the base model has them
        models/             fitted models that the job needs
        results/            files of other kinds of jobs
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, job: str) -> Workspace:
        """The job's folder, made if it is not there yet; raises OutputError."""
        if not _NAME.match(job) or job.startswith("."):
            raise SpecError("the job's id is not one that a folder could be named by")
        folder = root / job
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as error:
            raise OutputError(f"the workspace cannot be made: {error.strerror}") from error
        return cls(folder)

    @property
    def output(self) -> Path:
        """The output folder of a fit."""
        return self.folder / "output"

    @property
    def printed(self) -> Path:
        """File of what the worker prints: private, for libraries may quote anything."""
        return self.folder / "printed.log"

    def printed_by(self, rank: int) -> Path:
        """The same, of another process of the worker."""
        return self.folder / f"printed-{rank}.log"

    def make_folder(self, name: str) -> Path:
        """Make a folder of that name below this one, unless there is one, and return it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    @property
    def complete(self) -> bool:
        """True if the fit is done, and only what it released is left to be handed in."""
        return self._mark.is_file()

    def set_complete(self) -> None:
        """All released files are there."""
        with self._mark.open("wb") as file:
            os.fsync(file.fileno())

    def resumable(self) -> bool:
        """Make ready for a fit: True if it goes on from a checkpoint, False if it starts anew.

        What a killed worker had begun to release is removed, and so is a run without a checkpoint:
        none of its steps can have run, since the first checkpoint is written before the first step.
        """
        if newest_step(self.output / PRIVATE) is None:
            shutil.rmtree(self.output, ignore_errors=True)
            return False
        for path in self.output.iterdir():
            if path.name != PRIVATE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True

    def forget_rows(self) -> None:
        """Remove what a job that is over leaves of private rows; canaries stay, for audits."""
        canaries = self.output / PRIVATE / DATA / CANARIES
        content = canaries.read_bytes() if canaries.is_file() and self.complete else None
        for path in self.folder.iterdir():
            if path != self.printed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if content is not None:
            canaries.parent.mkdir(parents=True, mode=0o700)
            canaries.write_bytes(content)

    @property
    def _mark(self) -> Path:
        return self.folder / "output.complete"


def newest_step(private: Path) -> int | None:
    """The step of the newest checkpoint in a run's private folder; None if it has none."""
    steps = [int(path.name[5:]) for path in (private / CHECKPOINTS).glob("step-*")]
    return max(steps, default=None)


def canary_folders(root: Path, commitment: str) -> Iterator[Path]:
    """Folders whose canaries are the ones that a privacy report commits to.

    Looked for below the root, and two levels around it: a launcher may give each job a root of its
    own, beside those of others. Never from the top of a file system, which is somebody else's.
    """
    pattern = f"*/output/{PRIVATE}/{DATA}/{CANARIES}"
    folders = [root.absolute(), *root.absolute().parents][:3]
    paths = {
        path.resolve()  # once, where a link leads there too
        for level, folder in enumerate(folders)
        if folder != folder.parent
        for path in folder.glob("*/" * level + pattern)
    }
    for path in sorted(paths):
        if hashlib.sha256(path.read_bytes()).hexdigest() == commitment:
            yield path.parent


def released(output: Path) -> list[Path]:
    """The files that a fit released, the report last."""
    files = [path for path in output.iterdir() if path.is_file()]
    return sorted(files, key=lambda path: (path.name == REPORT, path.name))
