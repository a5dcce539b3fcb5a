"""Datasets: references that owners register, and that only those with a grant find."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from support.gateway import BUDGET, COLUMNS, SOURCE, GatewayWorld, refused
from taciturn.server.jobs.terms import dataset_facts, usable_dataset
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import datasets, jobs, policies
from taciturn.wire.datasets import PolicyTerms
from taciturn.wire.jobs import DataRef


def test_a_dataset_is_registered_probed_and_found(world: GatewayWorld) -> None:
    names = [column.name for column in COLUMNS]
    answer = world.register(description="Notes of the ward", columns=names)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["state"], made["columns"], made["preview"]) == ("probing", None, "schema")
    assert made["policy"] == {
        "kind": "DP",
        "text": "DP (budget epsilon=8, delta=1e-06, unit=split_part(id, '_', 1))",
    }
    world.probed("phee", COLUMNS)
    found = world.ask("olga", "GET", "/datasets/phee").json()
    assert found["state"] == "ready"
    assert [column["name"] for column in found["columns"]] == ["id", "context"]
    assert world.ask("olga", "GET", "/datasets").json()["items"] == [found]


def test_the_split_key_is_random_long_and_shown_to_nobody(world: GatewayWorld) -> None:
    world.ready()
    world.ready(name="other", source="/data/other.csv", budget=None)
    keys = world.gateway.read(
        lambda connection: connection.execute(select(datasets.c.split_key)).scalars().all()
    )
    assert len(set(keys)) == 2
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)
    shown = "".join(
        world.ask(who, "GET", path).text
        for who in ("olga", "ann")
        for path in ("/datasets/phee", "/datasets", "/datasets/phee/preview", "/policies")
    )
    assert not any(key in shown for key in keys)
    found = world.gateway.read(lambda connection: world.services.datasets.find(connection, "phee"))
    assert found is not None
    assert found.split_key not in repr(found)


def test_a_probe_that_fails_refuses_the_dataset_until_the_next_one(world: GatewayWorld) -> None:
    world.register()
    world.probed("phee", None)
    assert world.ask("olga", "GET", "/datasets/phee").json()["state"] == "refused"
    refused(world.ask("olga", "GET", "/datasets/phee/preview"), 409, "not_ready")
    with pytest.raises(ProblemError, match="refused"):
        dataset_facts(for_job(world, "olga")[0], DataRef(dataset="phee"))
    assert world.ask("olga", "POST", "/datasets/phee/probes").json()["state"] == "probing"
    world.ask("olga", "POST", "/datasets/phee/probes")
    assert probes(world) == ["failed", "queued"]  # the second request found one at work
    world.probed("phee", COLUMNS)
    with pytest.raises(ProblemError, match="has yet to confirm its columns"):
        dataset_facts(for_job(world, "olga")[0], DataRef(dataset="phee"))
    world.state_columns("phee", COLUMNS)
    facts = dataset_facts(for_job(world, "olga")[0], DataRef(dataset="phee"))
    assert facts.columns == tuple(COLUMNS)


def test_the_same_request_again_gives_the_same_dataset(world: GatewayWorld) -> None:
    first, second = world.register(), world.register()
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert probes(world) == ["queued"]


@pytest.mark.parametrize(
    "change",
    [{"units": 5}, {"unit": "id"}, {"source": "/data/b.csv"}, {"description": "x"}, {"mock": [{}]}],
)
def test_a_name_stands_for_one_dataset(lite: GatewayWorld, change: dict[str, Any]) -> None:
    lite.register()
    assert "phee" in refused(lite.register(**change), 409, "conflict")
    refused(lite.register("oscar", namespace="oscars"), 409, "conflict")
    assert (
        lite.gateway.read(lambda connection: lite.services.policies.find(connection, "oscars"))
        is None
    )  # what is refused has opened nothing


def test_a_crash_before_the_dataset_is_made_good_by_the_same_request(world: GatewayWorld) -> None:
    world.submitter.fails = True
    assert world.register().status_code == 500
    refused(world.ask("olga", "GET", "/datasets/phee"), 404, "not_found")
    world.submitter.fails = False
    assert world.register().status_code == 201


def test_a_namespace_is_its_owners(lite: GatewayWorld) -> None:
    lite.ready()
    elsewhere = {"name": "b", "source": "/data/b.csv"}
    refused(lite.register("oscar", **elsewhere, budget=None), 404, "not_found")
    refused(lite.register("oscar", **elsewhere), 409, "conflict")
    lite.grant("user:oscar")
    refused(lite.register("oscar", **elsewhere, budget=None), 403, "forbidden")
    assert lite.register(**elsewhere, budget=None).status_code == 201


def test_a_namespace_needs_a_budget_to_be_opened(lite: GatewayWorld) -> None:
    assert "budget" in refused(lite.register(budget=None), 404, "not_found")


@pytest.mark.parametrize(("units", "delta"), [(1100, 1 / 1100), (1100, 0.01), (10**7, 1e-6)])
def test_delta_is_below_one_over_the_units(lite: GatewayWorld, units: int, delta: float) -> None:
    budget = {"epsilon": 8, "delta": delta}
    assert "below 1/units" in refused(lite.register(units=units, budget=budget), 422, "invalid")
    lite.register()
    more = {"name": "b", "source": "/data/b.csv", "units": 10**6, "budget": None}
    assert "below 1/units" in refused(lite.register(**more), 422, "invalid")


def test_the_same_rows_are_in_one_namespace(lite: GatewayWorld) -> None:
    lite.ready()
    other = {"name": "b", "namespace": "n2"}
    assert "another namespace" in refused(lite.register(**other), 409, "conflict")
    refused(lite.register("oscar", **other), 409, "conflict")
    finish_probes(lite)
    lite.ask("olga", "DELETE", "/datasets/phee")
    assert lite.register(**other).status_code == 201  # nothing had been spent on it


def test_rows_that_were_spent_on_stay_in_their_namespace(lite: GatewayWorld) -> None:
    lite.ready()
    lite.add_job("fit", state="succeeded")
    assert lite.ask("olga", "DELETE", "/datasets/phee").status_code == 204
    refused(lite.register(name="b", namespace="n2"), 409, "conflict")


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
def test_a_unit_is_one_row_wise_expression(lite: GatewayWorld, unit: str, words: str) -> None:
    detail = refused(lite.register(unit=unit), 422, "invalid")
    assert words in detail


def test_removing_hides_and_keeps_the_name(world: GatewayWorld) -> None:
    world.ready()
    world.grant()
    running = world.add_job("fit", state="running")
    assert "1 job(s)" in refused(world.ask("olga", "DELETE", "/datasets/phee"), 409, "conflict")
    change = update(jobs).where(jobs.c.id == running).values(state="succeeded")
    world.gateway.write(lambda connection: connection.execute(change))
    assert world.ask("olga", "DELETE", "/datasets/phee").status_code == 204
    for who in ("olga", "paul", "ann"):
        refused(world.ask(who, "GET", "/datasets/phee"), 404, "not_found")
        assert world.ask(who, "GET", "/datasets").json()["items"] == []
    refused(world.ask("olga", "DELETE", "/datasets/phee"), 404, "not_found")
    refused(world.register(), 409, "conflict")
    with pytest.raises(ProblemError, match="there is no dataset"):
        for_job(world, "paul")


def test_a_change_leaves_the_rest(lite: GatewayWorld) -> None:
    lite.ready(description="a")
    found = lite.ask("olga", "PATCH", "/datasets/phee", {"mock": [{"id": "1_1"}]}).json()
    assert (found["description"], found["preview"]) == ("a", "mock")
    found = lite.ask("olga", "PATCH", "/datasets/phee", {"description": "b"}).json()
    assert (found["description"], found["preview"]) == ("b", "mock")
    refused(lite.ask("olga", "PATCH", "/datasets/phee", {"units": 7}), 422, "invalid")
    refused(lite.ask("olga", "PATCH", "/datasets/phee", {"source": "/a.csv"}), 422, "invalid")


def test_practitioners_find_what_they_hold_a_live_grant_for(world: GatewayWorld) -> None:
    world.ready()
    for who in ("paul", "petra", "oscar"):
        refused(world.ask(who, "GET", "/datasets/phee"), 404, "not_found")
        assert world.ask(who, "GET", "/datasets").json()["items"] == []
    world.grant("user:paul")
    world.grant("group:cardio", epsilon=1.0, expires_at="2026-03-02T00:00:00Z")
    for who in ("paul", "petra"):
        assert world.ask(who, "GET", "/datasets/phee").status_code == 200
    assert for_job(world, "petra")[2] == ("group:cardio",)
    world.clock.forward(hours=13)
    refused(world.ask("petra", "GET", "/datasets/phee"), 404, "not_found")
    world.ask("olga", "DELETE", "/policies/patients/grants/user:paul")
    refused(world.ask("paul", "GET", "/datasets/phee"), 404, "not_found")
    with pytest.raises(ProblemError, match="there is no dataset"):
        for_job(world, "paul")


def test_the_reference_is_for_owner_and_auditor(lite: GatewayWorld) -> None:
    lite.ready()
    lite.grant()
    shown = {
        who: lite.ask(who, "GET", "/datasets/phee").json()["source"]
        for who in ("olga", "paul", "ann")
    }
    assert shown == {"olga": SOURCE, "paul": None, "ann": SOURCE}
    assert lite.ask("paul", "GET", "/datasets").json()["items"][0]["source"] is None


@pytest.mark.parametrize("who", ["paul", "petra", "ann", "adam"])
def test_only_owners_write(lite: GatewayWorld, who: str) -> None:
    lite.ready()
    lite.grant()
    before = rows(lite)
    for method, path, body in (
        ("POST", "/datasets", {"name": "x"}),
        ("PATCH", "/datasets/phee", {"description": "x"}),
        ("DELETE", "/datasets/phee", None),
        ("POST", "/datasets/phee/probes", None),
        ("PUT", "/datasets/phee/columns", {"header": False}),
        ("PUT", "/datasets/phee/preview/synthetic", {"job": "job_" + "0" * 20}),
        ("DELETE", "/datasets/phee/preview/synthetic", None),
    ):
        refused(lite.ask(who, method, path, body), 403, "forbidden")
    assert rows(lite) == before


def test_another_owner_writes_nothing_here(lite: GatewayWorld) -> None:
    lite.ready()
    before = rows(lite)
    for granted, status, code in ((False, 404, "not_found"), (True, 403, "forbidden")):
        if granted:
            lite.grant("user:oscar")
        for method, path, body in (
            ("PATCH", "/datasets/phee", {"description": "x"}),
            ("DELETE", "/datasets/phee", None),
            ("POST", "/datasets/phee/probes", None),
            ("PUT", "/datasets/phee/columns", {"header": False}),
            ("DELETE", "/datasets/phee/preview/synthetic", None),
        ):
            refused(lite.ask("oscar", method, path, body), status, code)
    assert rows(lite) == before


def test_an_administrator_sees_no_data(lite: GatewayWorld) -> None:
    lite.ready()
    for path in ("/datasets", "/datasets/phee", "/policies", "/budgets", "/datasets/phee/preview"):
        refused(lite.ask("adam", "GET", path), 403, "forbidden")


def test_a_job_of_the_owner_needs_no_grant(lite: GatewayWorld) -> None:
    lite.ready()
    lite.grant("user:olga")
    _, policy, holders = for_job(lite, "olga")
    assert holders == ()
    assert PolicyTerms.model_validate_json(policy.terms).budget.model_dump() == BUDGET


def test_an_auditor_uses_nothing(lite: GatewayWorld) -> None:
    lite.ready()
    with pytest.raises(ProblemError, match="there is no dataset"):
        for_job(lite, "ann")


def test_a_selection_is_checked_against_the_schema(lite: GatewayWorld) -> None:
    lite.ready()
    select, olga = lite.services.previews.select, lite.principal("olga")
    columns = select("phee", "id AS a, length(context) AS n", olga).columns
    assert [(column.name, column.type) for column in columns] == [("a", "string"), ("n", "int64")]
    with pytest.raises(ProblemError, match="did you mean 'context'"):
        select("phee", "contexts", olga)


def for_job(world: GatewayWorld, who: str) -> tuple[Any, Any, tuple[str, ...]]:
    """Row, policy and holders of a dataset that a job of this person may use."""
    caller, now_ms = world.principal(who), world.gateway.now_ms()
    return world.gateway.read(lambda connection: usable_dataset(connection, caller, "phee", now_ms))


def probes(world: GatewayWorld) -> list[str]:
    query = select(jobs.c.state).where(jobs.c.kind == "probe").order_by(jobs.c.state)
    return world.gateway.read(lambda connection: list(connection.execute(query).scalars()))


def finish_probes(world: GatewayWorld) -> None:
    change = update(jobs).where(jobs.c.kind == "probe").values(state="failed")
    world.gateway.write(lambda connection: connection.execute(change))


def rows(world: GatewayWorld) -> list[Any]:
    """All that requests could have changed."""
    return world.gateway.read(
        lambda connection: [
            connection.execute(select(table)).all() for table in (datasets, policies, jobs)
        ]
    )
