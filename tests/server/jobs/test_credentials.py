"""A worker's token is good for one attempt of one job, at one gateway, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import update

from support.gateway import GatewayWorld, fit
from support.launcher import FakeWorker
from taciturn.server.context import Gateway
from taciturn.server.identity import directory, job_access
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.principal import WorkerPrincipal
from taciturn.server.jobs import leases
from taciturn.server.ledger import SealKey
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs

Patch = pytest.MonkeyPatch


def of_its_job(world: GatewayWorld) -> None:
    """Another job's worker may not even ask."""
    mine = world.running(fit())
    other = world.running(fit(), key="key-00002")
    assert other.job != mine.job
    thief = FakeWorker(world.client, mine.job, other.token, mine.lease)
    assert thief.say("heartbeat").status_code in (401, 403)
    assert thief.charge(0, 5).status_code in (401, 403)
    assert mine.charge(0, 5).status_code == 204


def of_its_attempt(world: GatewayWorld) -> None:
    """Even where a row names it: a token says for which attempt it was made."""
    worker = world.running(fit())
    change = update(jobs).where(jobs.c.id == worker.job).values(attempt=2)
    world.gateway.write(lambda connection: connection.execute(change))
    for answer in (worker.charge(0, 5), worker.say("heartbeat"), worker.take("operation-2")):
        assert answer.status_code == 409


def at_its_gateway(world: GatewayWorld) -> None:
    """A copy of the database, under another key or at another address, takes no worker's token."""
    worker, here = world.running(fit()), world.gateway
    moved = here.settings.model_copy(update={"public_url": "https://copy.example"})
    for gateway in (replace(here, seal_key=SealKey.generate()), replace(here, settings=moved)):
        with pytest.raises(ProblemError) as refused:
            Directory(gateway).authenticate(worker.token)
        assert refused.value.code == "unauthenticated"
    assert isinstance(Directory(here).authenticate(worker.token), WorkerPrincipal)


def for_a_while(world: GatewayWorld) -> None:
    """Signs of life keep it; silence ends it."""
    worker, hold_s = world.running(fit()), world.gateway.settings.hold_s
    for _ in range(3):
        world.clock.forward(0.9 * hold_s)
        assert worker.say("heartbeat").status_code == 200
    world.clock.forward(1.1 * hold_s)
    assert worker.say("heartbeat").status_code == 401


CHECKS = [of_its_job, of_its_attempt, at_its_gateway, for_a_while]


@pytest.mark.parametrize("check", CHECKS)
def test_a_token_is_bound(check: Callable[[GatewayWorld], None], world: GatewayWorld) -> None:
    check(world)


def any_attempt(patch: Patch) -> None:
    for module in (leases, job_access):
        patch.setattr(
            module, "is_of_attempt", lambda row, worker: row.worker_token == worker.token_id
        )


def any_gateway(patch: Patch) -> None:
    patch.setattr(Gateway, "audience", "everywhere")


def for_ever(patch: Patch) -> None:
    real = directory.Directory.create_token

    def long(self: Directory, **given: object) -> object:
        return real(self, **{**given, "lifetime_ms": 10**12})  # type: ignore[arg-type]

    patch.setattr(directory.Directory, "create_token", long)
    patch.setattr(leases, "prolonged", lambda token_id, until_ms: directory.prolonged("", 0))


def never_longer(patch: Patch) -> None:
    patch.setattr(leases, "prolonged", lambda token_id, until_ms: directory.prolonged("", 0))


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (any_attempt, of_its_attempt),
        (any_gateway, at_its_gateway),
        (for_ever, for_a_while),
        (never_longer, for_a_while),
    ],
)
def test_the_mutant_is_killed(
    mutant: Callable[[Patch], None],
    check: Callable[[GatewayWorld], None],
    world: GatewayWorld,
    monkeypatch: Patch,
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(world)
