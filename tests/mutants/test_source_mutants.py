"""Ways in which rows would come under a second budget, or a worker would read what its owner may
not: each is killed by the check that is for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.databases import open_quickly
from support.gateway import GatewayWorld, fit
from taciturn.data import places
from taciturn.server.catalog.references import References
from taciturn.server.schema import versions
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import RemoteProbe
from taciturn.worker import sources
from taciturn.worker.context import JobContext
from taciturn.worker.job import Runner
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, notes, source, write

Patch = pytest.MonkeyPatch


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GatewayWorld]:
    engine = open_quickly(f"sqlite:///{tmp_path / 'gateway.db'}")
    versions.upgrade(engine)
    made = GatewayWorld.for_jobs(engine, tmp_path / "gateway")
    made.open_namespace("others", "other")
    yield made
    engine.dispose()


def compared(world: GatewayWorld, folder: Path) -> None:
    """Two budgets' jobs have found the same file."""
    marks = {"first": True, "places": ["a" * 32], "contents": ["b" * 32]}
    one = world.running(fit(), os.urandom(8).hex(), "olga")
    two = world.running(fit(data={"dataset": "other"}), os.urandom(8).hex(), "olga")
    assert one.say("source", marks).status_code == 204
    answer = two.say("source", {**marks, "places": ["c" * 32]})
    assert answer.status_code == 409


def ended(folder: Path, path: Path | str, **changes: Any) -> FakeGateway:
    """A look of a worker at a source."""
    rows = source(path).model_copy(update=changes)
    gateway = FakeGateway(assignment(RemoteProbe(dataset="notes"), source=rows))
    Runner(folder / "root").run(gateway.client())
    return gateway


def told(world: GatewayWorld, folder: Path) -> None:
    """A worker says what it is about to read."""
    gateway = ended(folder, write(notes(3), folder / "notes.jsonl"))
    assert gateway.outcome.succeeded
    assert [(len(each.places), len(each.contents)) for each in gateway.sources] == [(2, 1)]


def within(world: GatewayWorld, folder: Path) -> None:
    """An owner's prefix, and a file that is not in it."""
    path = write(notes(3), folder / "notes.jsonl")
    gateway = ended(folder, path, prefixes=(f"{folder}/mine/",))
    assert gateway.outcome.code is FailureCode.SOURCE_REFUSED


def linked(world: GatewayWorld, folder: Path) -> None:
    """A link in it that leads to the file."""
    path, mine = write(notes(3), folder / "notes.jsonl"), folder / "mine"
    mine.mkdir(exist_ok=True)
    (mine / "link.jsonl").unlink(missing_ok=True)
    (mine / "link.jsonl").symlink_to(path)
    gateway = ended(folder, mine / "link.jsonl", prefixes=(f"{mine}/",))
    assert gateway.outcome.code is FailureCode.SOURCE_REFUSED


def kept(world: GatewayWorld, folder: Path) -> None:
    """The gateway's own folder."""
    path = write(notes(3), folder / "notes.jsonl")
    gateway = ended(folder, path, own=(f"{folder}/",))
    assert gateway.outcome.code is FailureCode.SOURCE_REFUSED


def public(world: GatewayWorld, folder: Path) -> None:
    """A service of the worker's own machine."""
    gateway = ended(folder, "http://127.0.0.1:9/notes.csv", prefixes=("http://",))
    assert gateway.outcome.code is FailureCode.SOURCE_REFUSED


def source_identity_not_compared(patch: Patch) -> None:
    patch.setattr(References, "identify", lambda *_: True)


def source_identity_not_told(patch: Patch) -> None:
    def opened(task: JobContext) -> object:
        assert task.assignment.source is not None
        return sources.open_source(task.assignment.source).rows

    patch.setattr(JobContext, "open_rows", opened)


def prefixes_not_checked(patch: Patch) -> None:
    patch.setattr(places, "is_allowed", lambda *_: True)
    patch.setattr(sources, "_folder", lambda _: "/")


def links_not_followed(patch: Patch) -> None:
    patch.setattr(os.path, "realpath", os.path.abspath)
    patch.setattr(os, "O_NOFOLLOW", 0)


def own_folder_read(patch: Patch) -> None:
    patch.setattr(places, "inside", lambda place, outer: outer == "/")


def any_address(patch: Patch) -> None:
    patch.setattr(sources, "is_reachable", lambda *_: True)


Check = Callable[[GatewayWorld, Path], None]
MUTANTS: dict[str, tuple[Callable[[Patch], None], Check]] = {
    "source identity not compared": (source_identity_not_compared, compared),
    "source identity not told": (source_identity_not_told, told),
    "prefixes not checked": (prefixes_not_checked, within),
    "links not followed": (links_not_followed, linked),
    "own folder read": (own_folder_read, kept),
    "any address": (any_address, public),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed_by_its_check(
    name: str, world: GatewayWorld, tmp_path: Path, monkeypatch: Patch
) -> None:
    mutant, check = MUTANTS[name]
    with monkeypatch.context() as patch:
        mutant(patch)
        with pytest.raises(AssertionError):
            check(world, tmp_path)
    check(world, tmp_path)
