"""Access to jobs, models and datasets of a namespace: roles of now count, not those of then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import ColumnElement, insert, select, update

from hospital import DP_LINE, Hospital
from taciturn.server.identity.job_access import holds_job, holds_model, uses_model, watches_model
from taciturn.server.identity.principal import Principal
from taciturn.server.jobs.terms import usable_dataset
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import jobs, models
from taciturn.wire.identity import Role


@pytest.fixture
def fitted(clinic: Hospital) -> Hospital:
    """A model and jobs of paul's in olga's namespace."""
    clinic.ready()
    clinic.grant("user:paul")
    model = {
        "id": "model_" + "0" * 20,
        "job_id": clinic.job("fit", state="succeeded"),
        "owner_id": clinic.ids["paul"],
        "namespace": "patients",
        "base_model": "taciturn/tiny-medical",
        "report": "{}",
        "policy": DP_LINE.model_dump_json(),
        "created_at_ms": 0,
    }
    change = update(jobs).values(requester_id=clinic.ids["paul"])
    clinic.gateway.write(lambda connection: connection.execute(insert(models).values(model)))
    clinic.gateway.write(lambda connection: connection.execute(change))
    return clinic


def as_(hospital: Hospital, who: str, role: Role) -> Principal:
    """A person, with another role than when the namespace was opened."""
    return replace(hospital.principal(who), roles=frozenset({role}))


def count(hospital: Hospital, table: str, condition: ColumnElement[bool]) -> int:
    rows = {"jobs": jobs, "models": models}[table]
    return len(hospital.gateway.rows(select(rows.c.id).where(condition)))


def test_owner_and_maker_use_a_model_and_nobody_else(fitted: Hospital) -> None:
    for who, uses in (("paul", 1), ("olga", 1), ("petra", 0), ("oscar", 0), ("ann", 0)):
        assert count(fitted, "models", uses_model(fitted.principal(who))) == uses
    assert count(fitted, "models", watches_model(fitted.principal("ann"))) == 1


def test_who_is_no_owner_any_more_has_no_access_by_the_namespace(fitted: Hospital) -> None:
    former = as_(fitted, "olga", Role.PRACTITIONER)
    assert count(fitted, "jobs", holds_job(fitted.principal("olga"))) > 0
    assert count(fitted, "models", holds_model(former)) == 0
    assert count(fitted, "models", uses_model(former)) == 0
    assert count(fitted, "jobs", holds_job(former)) == 0
    now_ms = fitted.gateway.now_ms()
    with pytest.raises(ProblemError, match="there is no dataset"):
        fitted.gateway.read(lambda c: usable_dataset(c, former, "phee", now_ms))


def test_an_auditor_uses_not_even_what_they_made(fitted: Hospital) -> None:
    assert count(fitted, "models", uses_model(as_(fitted, "paul", Role.AUDITOR))) == 0
