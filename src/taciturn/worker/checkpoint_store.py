"""Sealed copies of checkpoints in an object store, so that a fit goes on where no disk is left.

    URL/JOB/LEASE/STEP-xxxx      a file of a run's private folder, sealed
    URL/JOB/LEASE/STEP.manifest  which of them make up a checkpoint, sealed; written last
    URL/canaries/COMMITMENT      what an audit of the fitted model will need

Each worker writes below its own fencing token and changes nothing below another's, so that one
that was fenced off and does not know it yet cannot touch what its successor writes. Names of
objects are never used twice. What a store's operator can do is what a broken disk can: lose
checkpoints, old ones or new ones. A lost one costs blocks that are charged again.

Prepared rows are written once and then named by every manifest; they, the canaries among them and
the opening of the commitment are what a resumed fit could not make again. All of it is private.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_exponential

from taciturn.data.filesystem import open_filesystem
from taciturn.errors import OutputError, SpecError
from taciturn.reports.privacy import DATA, PRIVATE
from taciturn.worker.encryption import KEY_BYTES, OtherKeyError, Place, SealError, seal, unseal
from taciturn.worker.workspace import CHECKPOINTS, newest_step

PATIENCE_S = 600.0
"""How long a store may not answer, where a fit could not begin or go on without it."""

_SHORT_S = 30.0  # where it can
_KEPT = 2
_CANARIES = "canaries"
_MANIFEST = re.compile(r"^(\d{8,})\.manifest$")

T = TypeVar("T")


class _SealedFile(BaseModel):
    """A file of a checkpoint: its path in the private folder, and where its object is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    lease: int
    step: int
    object: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    parts: tuple[_SealedFile, ...]


@dataclass(frozen=True, slots=True, repr=False)
class CheckpointStore:
    """A folder of an object store, and the owner's key.

    Attributes:
        files: of fsspec.
        root: the folder, as `files` calls it.
        patience_s: how long what must succeed is tried again.
    """

    files: Any
    root: str
    key: bytes
    patience_s: float = PATIENCE_S

    @classmethod
    def open(cls, url: str, key: bytes) -> CheckpointStore:
        """The store at `url`, or in a local folder. Connects when first used.

        Raises:
            SpecError: the key has another length, or nobody here knows the URL's protocol.
        """
        if len(key) != KEY_BYTES:
            raise SpecError(f"the checkpoint key has {len(key)} bytes; give {KEY_BYTES}")
        try:
            files, root = open_filesystem(url)
        except (ImportError, ValueError) as error:
            protocol = url.partition("://")[0]
            raise SpecError(
                f"TACITURN_CHECKPOINT_URL has protocol {protocol}, which cannot be used here "
                f"({type(error).__name__}); install its package in the worker's image, or give "
                "another URL"
            ) from None
        return cls(files, root.rstrip("/"), key)

    def of(self, job: str, lease: int) -> JobCheckpoints:
        """The part of a job, for the worker that holds it under this fencing token."""
        return JobCheckpoints(self, job, lease)

    def keep_canaries(self, path: Path, commitment: str) -> None:
        """Keep what an audit will need, under its commitment; raises OutputError."""
        target = self.at(_CANARIES, commitment)
        patiently(lambda: self.seal_file(_canaries(commitment), path, target), self.patience_s)

    def canaries(self, commitment: str) -> bytes | None:
        """Return the canaries kept under this commitment, None without any. Raises SealError."""
        with suppress(FileNotFoundError):
            path = self.at(_CANARIES, commitment)
            return patiently(lambda: self.get(_canaries(commitment), path), self.patience_s)
        return None

    def seal_file(self, place: Place, source: Path, target: str) -> None:
        """Seal a file into an object."""
        with source.open("rb") as file:
            self._write(place, file, target)

    def seal_bytes(self, place: Place, content: bytes, target: str) -> None:
        """Seal a few bytes into an object."""
        self._write(place, io.BytesIO(content), target)

    def get(self, place: Place, path: str) -> bytes:
        """Content of a small object; raises SealError."""
        target = io.BytesIO()
        with self.files.open(path, "rb") as source:
            unseal(self.key, place, source, target)
        return target.getvalue()

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder; empty if there is no such folder."""
        self.files.invalidate_cache()
        try:
            paths = self.files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in paths)

    def _write(self, place: Place, source: Any, target: str) -> None:
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        with self.files.open(target, "wb") as file:
            seal(self.key, place, source, file)

    def at(self, *names: str) -> str:
        """A path below the root."""
        return "/".join((self.root, *names))


@dataclass(slots=True, repr=False)
class JobCheckpoints:
    """The checkpoints of one job, for one holder of its lease."""

    store: CheckpointStore
    job: str
    lease: int
    _prepared: dict[str, _SealedFile] = field(default_factory=dict)
    _steps: list[list[str]] = field(default_factory=list)

    def keep(self, private: Path) -> None:
        """Put the newest checkpoint of a run into the store; returns once it is there whole.

        The first one must get there, since a fit that could not go on elsewhere should not begin.
        A later one that does not is said, and left out: the one before it is still there.

        Raises:
            OutputError: the store did not take the first one.
        """
        step = newest_step(private)
        if step is None or (self._steps and self._steps[-1][0] == _manifest_of(step)):
            return  # nothing there, or nothing new
        if not self._steps:
            patiently(lambda: self._keep(private, step), self.store.patience_s)
            return
        try:
            patiently(lambda: self._keep(private, step), min(_SHORT_S, self.store.patience_s))
        except OutputError as error:
            print(f"no copy of the checkpoint: {error}", file=sys.stderr)

    def restore(self, output: Path, above: int | None) -> int | None:
        """Make `output` the newest run that is there whole; returns its step.

        Args:
            above: the step of what is on disk already; only a later one is wanted.

        Returns:
            None if there is none, and then `output` is as it was.

        Raises:
            OutputError: the store does not answer. To begin anew would spend twice.
            SpecError: what is there was sealed under another key.
        """
        beside, another_key = output.with_name(f".{output.name}.partial"), False
        for step, lease in patiently(self._manifests, self.store.patience_s):
            if above is not None and step <= above:
                return None
            try:
                manifest = self._manifest(step, lease)
                self._fetch(manifest, beside)
            except OtherKeyError:
                another_key = True
            except (SealError, FileNotFoundError, ValidationError):
                continue  # damaged, or removed by whoever wrote it: the one before it will do
            else:
                shutil.rmtree(output, ignore_errors=True)
                beside.rename(output)
                self._prepared = {p.path: p for p in manifest.parts if _stays(p.path)}
                return step
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        if another_key:
            raise SpecError(
                "TACITURN_CHECKPOINT_KEY is not the key that this job's checkpoints were sealed "
                "under; give that one, or cancel the job"
            )
        return None

    def remove(self) -> None:
        """Remove all checkpoints of the job, whoever wrote them."""
        folder = self.store.at(self.job)

        def remove_folder() -> None:
            self.store.files.invalidate_cache()
            with suppress(FileNotFoundError):
                self.store.files.rm(folder, recursive=True)

        patiently(remove_folder, min(_SHORT_S, self.store.patience_s))

    def _keep(self, private: Path, step: int) -> None:
        objects: list[str] = []
        parts = []
        for path in _files(private, step):
            name = path.relative_to(private).as_posix()
            part = self._prepared.get(name)
            if part is None:
                part = _SealedFile(
                    path=name, lease=self.lease, step=step, object=f"{step:08d}-{token_hex(8)}"
                )
                self.store.seal_file(self._place(part), path, self._at(part.lease, part.object))
                if _stays(name):
                    self._prepared[name] = part
                else:
                    objects.append(part.object)
            parts.append(part)
        manifest = _manifest_of(step)
        content = _Manifest(parts=tuple(parts)).model_dump_json().encode()
        place = Place(self.job, self.lease, step, "manifest")
        self.store.seal_bytes(place, content, self._at(self.lease, manifest))
        self._steps.append([manifest, *objects])
        self._remove_older()

    def _remove_older(self) -> None:
        """Remove this worker's older checkpoints; one that stays is removed with the job."""
        while len(self._steps) > _KEPT:
            for name in self._steps.pop(0):
                with suppress(Exception):
                    self.store.files.rm_file(self._at(self.lease, name))

    def _manifests(self) -> list[tuple[int, int]]:
        """Step and lease of every manifest, the newest first."""
        manifests = []
        for lease in self.store.names(self.store.at(self.job)):
            if not lease.isdecimal():
                continue
            for name in self.store.names(self._at(int(lease))):
                if match := _MANIFEST.match(name):
                    manifests.append((int(match[1]), int(lease)))
        return sorted(manifests, reverse=True)

    def _manifest(self, step: int, lease: int) -> _Manifest:
        place = Place(self.job, lease, step, "manifest")
        path = self._at(lease, _manifest_of(step))
        content = patiently(lambda: self.store.get(place, path), self.store.patience_s)
        return _Manifest.model_validate_json(content)

    def _fetch(self, manifest: _Manifest, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for part in manifest.parts:
            name = PurePosixPath(part.path)
            if name.is_absolute() or ".." in name.parts:
                raise SealError("a path that leads out of its folder")
            target = folder / PRIVATE / name
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            patiently(partial(self._get, part, target), self.store.patience_s)

    def _get(self, part: _SealedFile, target: Path) -> None:
        source_path = self._at(part.lease, part.object)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with (
            os.fdopen(descriptor, "wb") as file,
            self.store.files.open(source_path, "rb") as source,
        ):
            unseal(self.store.key, self._place(part), source, file)

    def _place(self, part: _SealedFile) -> Place:
        return Place(self.job, part.lease, part.step, part.path)

    def _at(self, lease: int, *names: str) -> str:
        return self.store.at(self.job, f"{lease:08d}", *names)


def patiently(action: Callable[[], T], patience_s: float) -> T:
    """Return what `action` returns, trying again while it raises: any error of a store's client may
    pass. A missing object, or one that is not as it was sealed, stays so and is not tried again.

    Raises:
        OutputError: not within `patience_s`.
    """
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential(multiplier=0.2, max=10.0),
        stop=stop_before_delay(patience_s),
        reraise=True,
    )
    try:
        return retrying(action)
    except Exception as error:
        if not _may_pass(error):
            raise
        raise OutputError(
            f"the checkpoint store did not do what it was asked for in {patience_s:g} s "
            f"({type(error).__name__}); check TACITURN_CHECKPOINT_URL, its credentials "
            "and the network"
        ) from error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, FileNotFoundError | SealError)


def _files(private: Path, step: int) -> Iterator[Path]:
    """Files that a run is resumed from: its private folder, with one of the checkpoints."""
    checkpoint = private / CHECKPOINTS / f"step-{step:08d}"
    for path in sorted(private.rglob("*")):
        inside = private / CHECKPOINTS not in path.parents or checkpoint in path.parents
        is_hidden = any(name.startswith(".") for name in path.relative_to(private).parts)
        if path.is_file() and inside and not is_hidden:
            yield path


def _manifest_of(step: int) -> str:
    return f"{step:08d}.manifest"


def _stays(name: str) -> bool:
    """True for a file of the prepared rows, which do not change."""
    return name.startswith(f"{DATA}/")


def _canaries(commitment: str) -> Place:
    return Place(_CANARIES, 0, 0, commitment)
