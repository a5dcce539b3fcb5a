"""A worker that takes over on an empty disk: from the vault, with nothing plain in the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from taciturn.data.tokens.planted import CANARIES
from taciturn.reports.privacy import Audit, PrivacyReport
from taciturn.wire.events import FailureCode, Stage, StageEvent
from taciturn.wire.exits import WorkerExit
from taciturn.wire.jobs import RemoteAudit
from taciturn.wire.worker import MOST_ASKED, Assignment, BaseModelFacts
from taciturn.worker.checkpoint_store import CheckpointStore
from taciturn.worker.cleanup import remove_leftovers
from taciturn.worker.client import GatewayClient
from taciturn.worker.job import Runner
from worker import safes
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, fit_job, request, source, write
from worker.leaks import CANARY, rows
from worker.safes import vault

pytestmark = pytest.mark.usefixtures("kept_processes")

STEPS = 12
MODEL = "mod_0000000000000001"


@pytest.fixture(scope="module")
def job(base: BaseModelFacts, tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    path = write(rows(), tmp_path_factory.mktemp("rows") / "notes.jsonl")
    return fit_job(request(base.name, steps=STEPS, canaries=20), base, source(path))


def dies_at(charge: int) -> Callable[[str, str], None]:
    """A machine that is taken away when a block is to be charged."""
    seen: list[str] = []

    def before(method: str, what: str) -> None:
        seen.append(what)
        if seen.count("charges") == charge and what == "charges":
            raise KeyboardInterrupt

    return before


def stages(gateway: FakeGateway) -> list[Stage]:
    return [event.stage for event in gateway.events if isinstance(event, StageEvent)]


def machine(folder: Path, name: str, store: CheckpointStore) -> Runner:
    """A worker on an empty disk."""
    return Runner(folder / name, store=store)


def test_a_fit_goes_on_where_no_disk_is_left(job: Assignment, tmp_path: Path) -> None:
    store = vault(tmp_path / "store")
    gateway = FakeGateway(job)
    gateway.before = dies_at(2)
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.INTERRUPTED
    planted = (tmp_path / "one").glob(f"*/output/private/data/{CANARIES}")
    coins = [path.read_bytes() for path in planted]
    shutil.rmtree(tmp_path / "one")
    gateway.before = lambda method, what: None
    assert machine(tmp_path, "two", store).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    assert Stage.RESUMED in stages(gateway)
    # The first block had run, and does not run again.
    assert [(c.first_step, c.steps) for c in gateway.charges.values()] == [(0, 10), (10, 2)]
    report = PrivacyReport.model_validate_json(gateway.files["privacy_report.json"])
    assert job.plan is not None
    assert job.plan.privacy is not None
    assert report.epsilon == job.plan.privacy.epsilon
    assert report.canaries is not None
    assert store.canaries(report.canaries.commitment) == coins[0]

    # All checkpoints are gone, and an audit elsewhere finds who the canaries were.
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["canaries"]
    asked = assignment(RemoteAudit(model=MODEL, confidence=0.5), job="job_audit")
    names = {"model": MODEL, "files": tuple(gateway.files)}
    audit = FakeGateway(asked.model_copy(update=names), models={MODEL: gateway.files})
    assert machine(tmp_path, "three", store).run(audit.client()) is WorkerExit.REPORTED
    assert audit.outcome.succeeded, audit.incidents
    assert Audit.model_validate_json(audit.files["audit.json"]).canaries == 20


def test_a_fit_that_is_done_is_only_released_by_the_next(job: Assignment, tmp_path: Path) -> None:
    store = vault(tmp_path / "store")
    gateway = FakeGateway(job)

    def before(method: str, what: str) -> None:
        if what == "files":
            raise KeyboardInterrupt

    gateway.before = before
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.INTERRUPTED
    shutil.rmtree(tmp_path / "one")
    gateway.before = lambda method, what: None
    assert machine(tmp_path, "two", store).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    assert gateway.charged_steps == STEPS


def plain(store: Path, private: Path) -> list[str]:
    """What of the rows, of the prepared data or of the weights can be read in the store."""
    kept = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    kept += "\n".join(str(path) for path in store.rglob("*")).encode()
    found = [str(CANARY)] if CANARY.encode() in kept or CANARY.encode("utf-16-le") in kept else []
    for path in private.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        windows = {content[at : at + 24] for at in range(0, max(1, len(content) - 24), 97)}
        # What is the same in all files of a format says nothing.
        found += [path.name for w in windows if len(set(w)) > 6 and w in kept]
    return found


def test_nothing_in_the_store_can_be_read(job: Assignment, tmp_path: Path) -> None:
    """At every message of a worker; and the test would see it."""
    store = vault(tmp_path / "store")
    gateway = FakeGateway(job)
    seen: list[str] = []
    looks: list[int] = []

    def before(method: str, what: str) -> None:
        if what in ("charges", "files", "outcome"):
            (private,) = (tmp_path / "one").glob("*/output/private")
            seen.extend(plain(tmp_path / "store", private))
            looks.append(sum(path.is_file() for path in (tmp_path / "store").rglob("*")))

    gateway.before = before
    machine(tmp_path, "one", store).run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    assert seen == []
    assert max(looks) > 5


def test_a_plain_copy_would_be_seen(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "state.safetensors").write_bytes(bytes(range(256)) * 4)
    shutil.copytree(private, tmp_path / "store")
    assert "state.safetensors" in plain(tmp_path / "store", private)
    (tmp_path / "store" / "x").write_text(f"of {CANARY}")
    assert CANARY in plain(tmp_path / "store", private)


def test_without_a_place_for_checkpoints_nothing_is_spent(
    job: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(CheckpointStore, "_write", full)
    gateway = FakeGateway(job)
    store = vault(tmp_path / "store")
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.code is FailureCode.STORAGE
    assert not gateway.charges


def test_under_another_key_nothing_is_spent_again(job: Assignment, tmp_path: Path) -> None:
    gateway = FakeGateway(job)
    gateway.before = dies_at(2)
    machine(tmp_path, "one", vault(tmp_path / "store")).run(gateway.client())
    gateway.before = lambda method, what: None
    machine(tmp_path, "two", vault(tmp_path / "store", bytes(32))).run(gateway.client())
    assert gateway.outcome.code is FailureCode.BAD_CONFIGURATION
    assert gateway.charged_steps == 10


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_checkpoints_go_with_a_job_that_is_over(how: str, job: Assignment, tmp_path: Path) -> None:
    lease_s = 0.2 if how == "cancelled" else 30.0
    gateway = FakeGateway(job.model_copy(update={"lease_s": lease_s}), budget_steps=10)
    if how == "cancelled":
        gateway.before = lambda m, what: setattr(gateway, "cancel", bool(gateway.charges))
    store = vault(tmp_path / "store")
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.REPORTED
    assert not gateway.outcome.succeeded
    assert gateway.charged_steps == 10
    assert list((tmp_path / "store").iterdir()) == []


def test_a_fenced_worker_removes_nothing(job: Assignment, tmp_path: Path) -> None:
    gateway = FakeGateway(job.model_copy(update={"lease_s": 0.2}))

    def another_takes_it(method: str, what: str) -> None:
        if what == "charges" and gateway.charges:
            gateway.lease += 1

    gateway.before = another_takes_it
    store = vault(tmp_path / "store")
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.FENCED
    assert any((tmp_path / "store" / job.job).rglob("*.manifest"))


OVER, ALIVE, UNKNOWN = (f"job_{number:016d}" for number in (7, 8, 9))


def with_leftovers(store: CheckpointStore, folder: Path, *jobs: str) -> None:
    """Checkpoints of other jobs, as workers leave them whose machine was taken away."""
    for job in jobs:
        store.of(job, 1).keep(safes.run(folder / f"of-{job}", 5, job))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_jobs_that_are_over_have_left_goes_and_nothing_else(
    job: Assignment, tmp_path: Path
) -> None:
    """The gateway says who is over; what a living attempt may go on from, another gateway's and
    what audits need stays."""
    store = vault(tmp_path / "store")
    with_leftovers(store, tmp_path, OVER, ALIVE, UNKNOWN)
    (tmp_path / "store" / "canaries").mkdir()
    (tmp_path / "store" / "canaries" / "ab").write_bytes(b"sealed")
    gateway = FakeGateway(job, ended=(OVER, job.job))
    gateway.before = dies_at(2)
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.INTERRUPTED
    assert left(tmp_path / "store") == {job.job, ALIVE, UNKNOWN, "canaries"}
    assert safes.restored(store.of(ALIVE, 2), tmp_path) == (5, ALIVE)
    # Its own checkpoints are there, too, though somebody said that it is over.
    gateway.before = lambda method, what: None
    assert machine(tmp_path, "two", store).run(gateway.client()) is WorkerExit.REPORTED
    assert Stage.RESUMED in stages(gateway)


def test_a_gateway_that_says_too_much_is_not_believed(tmp_path: Path) -> None:
    """Only what was asked about is removed: an answer cannot lead out of the store's folder."""
    store, asked = vault(tmp_path / "store"), []
    with_leftovers(store, tmp_path, ALIVE)
    client = FakeGateway(assignment(RemoteAudit(model=MODEL, confidence=0.5))).client()
    answers = [("job_0000000000000077", "canaries")]

    class Liar:
        job = client.job

        def over(self, jobs: Sequence[str]) -> tuple[str, ...]:
            asked.append(tuple(jobs))
            return answers[0]

    assert remove_leftovers(store, cast("GatewayClient", Liar())) == 0
    assert asked == [(ALIVE,)]
    assert left(tmp_path / "store") == {ALIVE}


def test_a_store_or_a_gateway_that_fails_keeps_nobody_from_working(
    job: Assignment, tmp_path: Path
) -> None:
    store = vault(tmp_path / "store")
    with_leftovers(store, tmp_path, OVER)

    def before(method: str, what: str) -> None:
        if what == "over":
            raise RuntimeError("a gateway of last year")

    gateway = FakeGateway(job, ended=(OVER,), before=before)
    assert machine(tmp_path, "one", store).run(gateway.client()) is WorkerExit.REPORTED
    assert gateway.outcome.succeeded, gateway.incidents
    assert left(tmp_path / "store") == {OVER, "canaries"}


def test_many_are_asked_about_in_turn(tmp_path: Path) -> None:
    store = vault(tmp_path / "store")
    jobs = [f"job_{number:016d}" for number in range(100, 100 + MOST_ASKED + 20)]
    for each in jobs:
        (tmp_path / "store" / each / "00000001").mkdir(parents=True)
    gateway = FakeGateway(assignment(RemoteAudit(model=MODEL, confidence=0.5)), ended=tuple(jobs))
    client = gateway.client()
    client.take("worker")
    assert remove_leftovers(store, client) == len(jobs)
    assert left(tmp_path / "store") == set()
