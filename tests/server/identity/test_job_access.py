"""Access to jobs, models and datasets of a namespace: roles of now count, not those of then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import ColumnElement, select

from support.gateway import GatewayWorld
from taciturn.server.identity.job_access import holds_job, holds_model, uses_model, watches_model
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.terms import usable_dataset
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs, models
from taciturn.wire.identity import Role


@pytest.fixture
def fitted(lite: GatewayWorld) -> GatewayWorld:
    """A model and jobs of paul's in olga's namespace."""
    lite.populate()
    fit = lite.add_job("fit", state="succeeded")
    lite.add_model(fit, owner_id=lite.users["paul"])
    return lite


def as_(world: GatewayWorld, who: str, role: Role) -> Principal:
    """A person, with another role than when the namespace was opened."""
    return replace(world.principal(who), roles=frozenset({role}))


def count(world: GatewayWorld, table: str, condition: ColumnElement[bool]) -> int:
    rows = {"jobs": jobs, "models": models}[table]
    return len(world.gateway.rows(select(rows.c.id).where(condition)))


def test_owner_and_maker_use_a_model_and_nobody_else(fitted: GatewayWorld) -> None:
    for who, uses in (("paul", 1), ("olga", 1), ("petra", 0), ("oscar", 0), ("ann", 0)):
        assert count(fitted, "models", uses_model(fitted.principal(who))) == uses
    assert count(fitted, "models", watches_model(fitted.principal("ann"))) == 1


def test_who_is_no_owner_any_more_has_no_access_by_the_namespace(fitted: GatewayWorld) -> None:
    former = as_(fitted, "olga", Role.PRACTITIONER)
    assert count(fitted, "jobs", holds_job(fitted.principal("olga"))) > 0
    assert count(fitted, "models", holds_model(former)) == 0
    assert count(fitted, "models", uses_model(former)) == 0
    assert count(fitted, "jobs", holds_job(former)) == 0
    now_ms = fitted.gateway.now_ms()
    with pytest.raises(ProblemError, match="there is no dataset"):
        fitted.gateway.read(lambda c: usable_dataset(c, former, "phee", now_ms))


def test_an_auditor_uses_not_even_what_they_made(fitted: GatewayWorld) -> None:
    assert count(fitted, "models", uses_model(as_(fitted, "paul", Role.AUDITOR))) == 0
