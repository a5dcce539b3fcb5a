"""Datasets: references that owners register, and that only those with a grant find."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from hospital import BUDGET, COLUMNS, SOURCE, Hospital, refused
from taciturn.server.jobs.terms import dataset_facts, usable_dataset
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, jobs, policies
from taciturn.wire.datasets import PolicyTerms
from taciturn.wire.jobs import DataRef


def test_a_dataset_is_registered_probed_and_found(hospital: Hospital) -> None:
    names = [column.name for column in COLUMNS]
    answer = hospital.register(description="Notes of the ward", columns=names)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["state"], made["columns"], made["preview"]) == ("probing", None, "schema")
    assert made["policy"] == {
        "kind": "DP",
        "text": "DP (budget epsilon=8, delta=1e-06, unit=split_part(id, '_', 1))",
    }
    hospital.probed("phee", COLUMNS)
    found = hospital.ask("olga", "GET", "/datasets/phee").json()
    assert found["state"] == "ready"
    assert [column["name"] for column in found["columns"]] == ["id", "context"]
    assert hospital.ask("olga", "GET", "/datasets").json()["items"] == [found]


def test_the_split_key_is_random_long_and_shown_to_nobody(hospital: Hospital) -> None:
    hospital.ready()
    hospital.ready(name="other", source="/data/other.csv", budget=None)
    keys = hospital.gateway.read(
        lambda connection: connection.execute(select(datasets.c.split_key)).scalars().all()
    )
    assert len(set(keys)) == 2
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)
    shown = "".join(
        hospital.ask(who, "GET", path).text
        for who in ("olga", "ann")
        for path in ("/datasets/phee", "/datasets", "/datasets/phee/preview", "/policies")
    )
    assert not any(key in shown for key in keys)
    found = hospital.gateway.read(
        lambda connection: hospital.services.datasets.find(connection, "phee")
    )
    assert found is not None
    assert found.split_key not in repr(found)


def test_a_probe_that_fails_refuses_the_dataset_until_the_next_one(hospital: Hospital) -> None:
    hospital.register()
    hospital.probed("phee", None)
    assert hospital.ask("olga", "GET", "/datasets/phee").json()["state"] == "refused"
    refused(hospital.ask("olga", "GET", "/datasets/phee/preview"), 409, "not_ready")
    with pytest.raises(ProblemError, match="refused"):
        dataset_facts(for_job(hospital, "olga")[0], DataRef(dataset="phee"))
    assert hospital.ask("olga", "POST", "/datasets/phee/probes").json()["state"] == "probing"
    hospital.ask("olga", "POST", "/datasets/phee/probes")
    assert probes(hospital) == ["failed", "queued"]  # the second request found one at work
    hospital.probed("phee", COLUMNS)
    with pytest.raises(ProblemError, match="has yet to confirm its columns"):
        dataset_facts(for_job(hospital, "olga")[0], DataRef(dataset="phee"))
    hospital.state("phee", COLUMNS)
    facts = dataset_facts(for_job(hospital, "olga")[0], DataRef(dataset="phee"))
    assert facts.columns == tuple(COLUMNS)


def test_the_same_request_again_gives_the_same_dataset(hospital: Hospital) -> None:
    first, second = hospital.register(), hospital.register()
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert probes(hospital) == ["queued"]


@pytest.mark.parametrize(
    "change",
    [{"units": 5}, {"unit": "id"}, {"source": "/data/b.csv"}, {"description": "x"}, {"mock": [{}]}],
)
def test_a_name_stands_for_one_dataset(clinic: Hospital, change: dict[str, Any]) -> None:
    clinic.register()
    assert "phee" in refused(clinic.register(**change), 409, "conflict")
    refused(clinic.register("oscar", namespace="oscars"), 409, "conflict")
    assert (
        clinic.gateway.read(lambda connection: clinic.services.policies.find(connection, "oscars"))
        is None
    )  # what is refused has opened nothing


def test_a_crash_before_the_dataset_is_made_good_by_the_same_request(hospital: Hospital) -> None:
    hospital.desk.fails = True
    assert hospital.register().status_code == 500
    refused(hospital.ask("olga", "GET", "/datasets/phee"), 404, "not_found")
    hospital.desk.fails = False
    assert hospital.register().status_code == 201


def test_a_namespace_is_its_owners(clinic: Hospital) -> None:
    clinic.ready()
    elsewhere = {"name": "b", "source": "/data/b.csv"}
    refused(clinic.register("oscar", **elsewhere, budget=None), 404, "not_found")
    refused(clinic.register("oscar", **elsewhere), 409, "conflict")
    clinic.grant("user:oscar")
    refused(clinic.register("oscar", **elsewhere, budget=None), 403, "forbidden")
    assert clinic.register(**elsewhere, budget=None).status_code == 201


def test_a_namespace_needs_a_budget_to_be_opened(clinic: Hospital) -> None:
    assert "budget" in refused(clinic.register(budget=None), 404, "not_found")


@pytest.mark.parametrize(("units", "delta"), [(1100, 1 / 1100), (1100, 0.01), (10**7, 1e-6)])
def test_delta_is_below_one_over_the_units(clinic: Hospital, units: int, delta: float) -> None:
    budget = {"epsilon": 8, "delta": delta}
    assert "below 1/units" in refused(clinic.register(units=units, budget=budget), 422, "invalid")
    clinic.register()
    more = {"name": "b", "source": "/data/b.csv", "units": 10**6, "budget": None}
    assert "below 1/units" in refused(clinic.register(**more), 422, "invalid")


def test_the_same_rows_are_in_one_namespace(clinic: Hospital) -> None:
    clinic.ready()
    other = {"name": "b", "namespace": "n2"}
    assert "another namespace" in refused(clinic.register(**other), 409, "conflict")
    refused(clinic.register("oscar", **other), 409, "conflict")
    finish_probes(clinic)
    clinic.ask("olga", "DELETE", "/datasets/phee")
    assert clinic.register(**other).status_code == 201  # nothing had been spent on it


def test_rows_that_were_spent_on_stay_in_their_namespace(clinic: Hospital) -> None:
    clinic.ready()
    clinic.job("fit", state="succeeded")
    assert clinic.ask("olga", "DELETE", "/datasets/phee").status_code == 204
    refused(clinic.register(name="b", namespace="n2"), 409, "conflict")


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("count(*)", "mixes rows"),
        ("row_number() OVER ()", "mixes rows"),
        ("(SELECT 1)", "subquery"),
        ("random()", "chance"),
        ("a, b", "not one expression"),
        ("'everybody'", "reads no column"),
        ("id; DROP TABLE x", "more than one statement"),
        ("getenv('HOME')", "not on the list"),
        ("\x00", "no SQL needs"),
    ],
)
def test_a_unit_is_one_row_wise_expression(clinic: Hospital, unit: str, words: str) -> None:
    detail = refused(clinic.register(unit=unit), 422, "invalid")
    assert words in detail


def test_removing_hides_and_keeps_the_name(hospital: Hospital) -> None:
    hospital.ready()
    hospital.grant()
    running = hospital.job("fit", state="running")
    assert "1 job(s)" in refused(hospital.ask("olga", "DELETE", "/datasets/phee"), 409, "conflict")
    change = update(jobs).where(jobs.c.id == running).values(state="succeeded")
    hospital.gateway.write(lambda connection: connection.execute(change))
    assert hospital.ask("olga", "DELETE", "/datasets/phee").status_code == 204
    for who in ("olga", "paul", "ann"):
        refused(hospital.ask(who, "GET", "/datasets/phee"), 404, "not_found")
        assert hospital.ask(who, "GET", "/datasets").json()["items"] == []
    refused(hospital.ask("olga", "DELETE", "/datasets/phee"), 404, "not_found")
    refused(hospital.register(), 409, "conflict")
    with pytest.raises(ProblemError, match="there is no dataset"):
        for_job(hospital, "paul")


def test_a_change_leaves_the_rest(clinic: Hospital) -> None:
    clinic.ready(description="a")
    found = clinic.ask("olga", "PATCH", "/datasets/phee", {"mock": [{"id": "1_1"}]}).json()
    assert (found["description"], found["preview"]) == ("a", "mock")
    found = clinic.ask("olga", "PATCH", "/datasets/phee", {"description": "b"}).json()
    assert (found["description"], found["preview"]) == ("b", "mock")
    refused(clinic.ask("olga", "PATCH", "/datasets/phee", {"units": 7}), 422, "invalid")
    refused(clinic.ask("olga", "PATCH", "/datasets/phee", {"source": "/a.csv"}), 422, "invalid")


def test_practitioners_find_what_they_hold_a_live_grant_for(hospital: Hospital) -> None:
    hospital.ready()
    for who in ("paul", "petra", "oscar"):
        refused(hospital.ask(who, "GET", "/datasets/phee"), 404, "not_found")
        assert hospital.ask(who, "GET", "/datasets").json()["items"] == []
    hospital.grant("user:paul")
    hospital.grant("group:cardio", epsilon=1.0, expires_at="2026-03-02T00:00:00Z")
    for who in ("paul", "petra"):
        assert hospital.ask(who, "GET", "/datasets/phee").status_code == 200
    assert for_job(hospital, "petra")[2] == ("group:cardio",)
    hospital.watch.forward(hours=13)
    refused(hospital.ask("petra", "GET", "/datasets/phee"), 404, "not_found")
    hospital.ask("olga", "DELETE", "/policies/patients/grants/user:paul")
    refused(hospital.ask("paul", "GET", "/datasets/phee"), 404, "not_found")
    with pytest.raises(ProblemError, match="there is no dataset"):
        for_job(hospital, "paul")


def test_the_reference_is_for_owner_and_auditor(clinic: Hospital) -> None:
    clinic.ready()
    clinic.grant()
    shown = {
        who: clinic.ask(who, "GET", "/datasets/phee").json()["source"]
        for who in ("olga", "paul", "ann")
    }
    assert shown == {"olga": SOURCE, "paul": None, "ann": SOURCE}
    assert clinic.ask("paul", "GET", "/datasets").json()["items"][0]["source"] is None


@pytest.mark.parametrize("who", ["paul", "petra", "ann", "adam"])
def test_only_owners_write(clinic: Hospital, who: str) -> None:
    clinic.ready()
    clinic.grant()
    before = rows(clinic)
    for method, path, body in (
        ("POST", "/datasets", {"name": "x"}),
        ("PATCH", "/datasets/phee", {"description": "x"}),
        ("DELETE", "/datasets/phee", None),
        ("POST", "/datasets/phee/probes", None),
        ("PUT", "/datasets/phee/columns", {"header": False}),
        ("PUT", "/datasets/phee/preview/synthetic", {"job": "job_" + "0" * 20}),
        ("DELETE", "/datasets/phee/preview/synthetic", None),
    ):
        refused(clinic.ask(who, method, path, body), 403, "forbidden")
    assert rows(clinic) == before


def test_another_owner_writes_nothing_here(clinic: Hospital) -> None:
    clinic.ready()
    before = rows(clinic)
    for granted, status, code in ((False, 404, "not_found"), (True, 403, "forbidden")):
        if granted:
            clinic.grant("user:oscar")
        for method, path, body in (
            ("PATCH", "/datasets/phee", {"description": "x"}),
            ("DELETE", "/datasets/phee", None),
            ("POST", "/datasets/phee/probes", None),
            ("PUT", "/datasets/phee/columns", {"header": False}),
            ("DELETE", "/datasets/phee/preview/synthetic", None),
        ):
            refused(clinic.ask("oscar", method, path, body), status, code)
    assert rows(clinic) == before


def test_an_administrator_sees_no_data(clinic: Hospital) -> None:
    clinic.ready()
    for path in ("/datasets", "/datasets/phee", "/policies", "/budgets", "/datasets/phee/preview"):
        refused(clinic.ask("adam", "GET", path), 403, "forbidden")


def test_a_job_of_the_owner_needs_no_grant(clinic: Hospital) -> None:
    clinic.ready()
    clinic.grant("user:olga")
    _, policy, holders = for_job(clinic, "olga")
    assert holders == ()
    assert PolicyTerms.model_validate_json(policy.terms).budget.model_dump() == BUDGET


def test_an_auditor_uses_nothing(clinic: Hospital) -> None:
    clinic.ready()
    with pytest.raises(ProblemError, match="there is no dataset"):
        for_job(clinic, "ann")


def test_a_selection_is_checked_against_the_schema(clinic: Hospital) -> None:
    clinic.ready()
    select, olga = clinic.services.previews.select, clinic.principal("olga")
    columns = select("phee", "id AS a, length(context) AS n", olga).columns
    assert [(column.name, column.type) for column in columns] == [("a", "string"), ("n", "int64")]
    with pytest.raises(ProblemError, match="did you mean 'context'"):
        select("phee", "contexts", olga)


def for_job(hospital: Hospital, who: str) -> tuple[Any, Any, tuple[str, ...]]:
    """Row, policy and holders of a dataset that a job of this person may use."""
    caller, now_ms = hospital.principal(who), hospital.gateway.now_ms()
    return hospital.gateway.read(
        lambda connection: usable_dataset(connection, caller, "phee", now_ms)
    )


def probes(hospital: Hospital) -> list[str]:
    query = select(jobs.c.state).where(jobs.c.kind == "probe").order_by(jobs.c.state)
    return hospital.gateway.read(lambda connection: list(connection.execute(query).scalars()))


def finish_probes(hospital: Hospital) -> None:
    change = update(jobs).where(jobs.c.kind == "probe").values(state="failed")
    hospital.gateway.write(lambda connection: connection.execute(change))


def rows(hospital: Hospital) -> list[Any]:
    """All that requests could have changed."""
    return hospital.gateway.read(
        lambda connection: [
            connection.execute(select(table)).all() for table in (datasets, policies, jobs)
        ]
    )
