"""Ways in which a row would be shown as names of columns, or a yes would count that was taken back:
each is killed by the check that is for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from support.databases import open_quickly
from support.gateway import COLUMNS, GatewayWorld, fit
from taciturn.server.catalog import columns, datasets, registration
from taciturn.server.catalog.datasets import Dataset
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.jobs import approvals
from taciturn.server.jobs.approvals import Approvals
from taciturn.server.jobs.submission import Jobs
from taciturn.server.schema import tables, versions
from taciturn.wire.datasets import ColumnView

Patch = pytest.MonkeyPatch
ROW = tuple(ColumnView(name=value, type="string") for value in ("P0017", "François Dupont"))
NESTED = (COLUMNS[0], ColumnView(name="context", type="struct<François Dupont: string>"))


@contextmanager
def opened(folder: Path, name: str) -> Iterator[Any]:
    engine = open_quickly(f"sqlite:///{folder / name}.db")
    versions.upgrade(engine)
    yield engine
    engine.dispose()


def told(world: GatewayWorld) -> str:
    """What whoever holds a grant is shown."""
    world.grant()
    return world.ask("paul", "GET", "/datasets/phee").text


def first_row(world: GatewayWorld) -> None:
    world.register(source="/data/notes.csv")
    world.probed("phee", ROW)
    assert "Dupont" not in told(world)


def keys(world: GatewayWorld) -> None:
    world.register(source="/data/notes.jsonl", columns=["id", "context"])
    world.probed("phee", NESTED)
    assert "Dupont" not in told(world)


def another(world: GatewayWorld) -> None:
    """What has come meanwhile is not confirmed with what was looked at."""
    world.register(source="/data/notes.csv")
    world.probed("phee", ROW)
    world.state_columns("phee", COLUMNS)
    assert "Dupont" not in told(world)


def whatever_is_found(patch: Patch) -> None:
    patch.setattr(datasets, "_is_public", lambda *_: True)


def shown_to_all(patch: Patch) -> None:
    real = Dataset.view
    patch.setattr(
        Dataset,
        "view",
        lambda self, *, with_source, with_probed: real(
            self, with_source=with_source, with_probed=True
        ),
    )


def any_type(patch: Patch) -> None:
    patch.setattr(columns, "_is_plain", lambda _: True)


def anything_stated(patch: Patch) -> None:
    patch.setattr(registration, "agree", lambda *_: True)


COLUMN_MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[GatewayWorld], None]]] = {
    "a probe makes ready whatever it finds": (whatever_is_found, first_row),
    "what is to be confirmed is shown to all": (shown_to_all, first_row),
    "names inside of types need not be stated": (any_type, keys),
    "anything confirms what was found": (anything_stated, another),
}


@pytest.mark.parametrize("name", COLUMN_MUTANTS)
def test_columns(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    mutate, check = COLUMN_MUTANTS[name]
    trials = SqlSandbox(1)
    with opened(tmp_path, "real") as engine:
        check(GatewayWorld.for_catalog(engine, tmp_path, trials))
    with opened(tmp_path, "mutant") as engine:
        mutate(monkeypatch)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(GatewayWorld.for_catalog(engine, tmp_path, trials))
    trials.close()


def says(world: GatewayWorld, approval: str, who: str, what: str = "decisions") -> None:
    body = {"decision": "approve"} if what == "decisions" else {}
    assert world.post(f"approvals/{approval}/{what}", body, who).is_success


def taken_back(world: GatewayWorld) -> None:
    asked = world.submit(fit(target_epsilon="unlimited")).json()
    says(world, asked["approval"], "otto")
    says(world, asked["approval"], "otto", "withdrawals")
    says(world, asked["approval"], "bea")
    world.tick()
    assert world.launcher.orders == []


def taken_back_at_the_last_moment(world: GatewayWorld) -> None:
    """Once what comes of it has begun: then it is too late, and is said to be."""
    asked = world.submit(fit(target_epsilon="unlimited")).json()
    real, answers = Jobs._paid_or_excepted, list[bool]()

    def meanwhile(self: Jobs, row: Any, reason: str) -> bool:
        answer = world.post(f"approvals/{asked['approval']}/withdrawals", {}, "otto")
        answers.append(answer.is_success)
        return real(self, row, reason)

    with pytest.MonkeyPatch.context() as late:
        late.setattr(Jobs, "_paid_or_excepted", meanwhile)
        says(world, asked["approval"], "otto")
        says(world, asked["approval"], "bea")
    world.tick()
    assert len(world.launcher.orders) == 1
    assert answers == [False]


def a_yes_stays(patch: Patch) -> None:
    patch.setattr(approvals, "_WITHDRAWN", "approved")


def used_as_it_was_read(patch: Patch) -> None:
    def approved(self: Approvals, job_id: str) -> bool:
        wanted = select(tables.approvals.c.state).where(tables.approvals.c.job_id == job_id)
        return self.gateway.rows(wanted)[0].state == "approved"

    patch.setattr(Approvals, "use", approved)


APPROVAL_MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[GatewayWorld], None]]] = {
    "a yes that was taken back counts": (a_yes_stays, taken_back),
    "a yes counts as it was read": (used_as_it_was_read, taken_back_at_the_last_moment),
}


@pytest.mark.parametrize("name", APPROVAL_MUTANTS)
def test_approvals(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    mutate, check = APPROVAL_MUTANTS[name]
    with opened(tmp_path, "real") as engine:
        check(GatewayWorld.for_jobs(engine, tmp_path))
    with opened(tmp_path, "mutant") as engine:
        mutate(monkeypatch)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(GatewayWorld.for_jobs(engine, tmp_path))
