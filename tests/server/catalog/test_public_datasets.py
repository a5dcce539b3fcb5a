"""Text that is declared public: by whom, for whom, and never what is private."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from support.gateway import GatewayWorld, refused
from taciturn.server.catalog.references import References
from taciturn.server.schema.tables import jobs
from taciturn.wire.worker import SourceMarks

CASES: dict[str, Any] = {
    "name": "cases",
    "source": "s3://open/cases.jsonl",
    "licence": "CC BY 4.0",
    "origin": "case reports of an open journal",
}


def declare(world: GatewayWorld, who: str = "olga", **changes: Any) -> Any:
    return world.ask(who, "POST", "/public-datasets", {**CASES, **changes})


def test_owners_and_administrators_declare_and_everybody_reads(world: GatewayWorld) -> None:
    entries = world.entries()
    assert declare(world).status_code == 201
    assert declare(world).status_code == 201  # the same request
    assert declare(world, "adam", name="guides", source="s3://open/guides.csv").status_code == 201
    for who in ("paul", "ann"):
        refused(declare(world, who, name="other"), 403, "forbidden")
    for who in ("paul", "ann", "adam", "oscar"):
        page = world.ask(who, "GET", "/public-datasets").json()
        assert [item["name"] for item in page["items"]] == ["cases", "guides"]
        one = world.ask(who, "GET", "/public-datasets/cases").json()
        assert (one["licence"], one["declared_by"]) == ("CC BY 4.0", "olga")
        seen = who in ("ann", "adam")
        assert one["source"] == ("s3://open/cases.jsonl" if seen else None)
    assert world.entries() == entries
    assert world.submitter is not None
    assert world.ask("olga", "GET", "/jobs").json()["items"] == []


def test_pages_go_on_where_the_last_one_ended(lite: GatewayWorld) -> None:
    for name in ("a", "b", "c"):
        declare(lite, name=name, source=f"s3://open/{name}.csv")
    first = lite.ask("paul", "GET", "/public-datasets?limit=2").json()
    path = f"/public-datasets?limit=2&cursor={first['next_cursor']}"
    second = lite.ask("paul", "GET", path).json()
    assert [item["name"] for item in (*first["items"], *second["items"])] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"licence": ""}, 422, "invalid"),
        ({"origin": None}, 422, "invalid"),
        ({"source": "s3://key:secret@open/cases.jsonl"}, 422, "invalid"),
        ({"source": "open/cases.jsonl"}, 422, "invalid"),
        ({"unit": "id"}, 422, "invalid"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    lite: GatewayWorld, changes: dict[str, Any], status: int, code: str
) -> None:
    assert "secret" not in refused(declare(lite, **changes), status, code)


def test_nothing_declared_ever_changes(lite: GatewayWorld) -> None:
    declare(lite)
    for change in ({"licence": "none"}, {"source": "s3://open/other.csv"}, {"text_field": "note"}):
        refused(declare(lite, **change), 409, "conflict")
    refused(declare(lite, "oscar"), 409, "conflict")


def test_private_rows_are_never_public(world: GatewayWorld) -> None:
    world.ready()
    refused(declare(world, name="phee"), 409, "conflict")
    text = refused(declare(world, source="s3a://hospital/phee.parquet"), 409, "conflict")
    assert "private data are registered there" in text
    declare(world)
    text = refused(world.register(name="b", source="s3://open/cases.jsonl"), 409, "conflict")
    assert "declared public" in text
    refused(world.register(name="cases", source="s3://hospital/b.csv"), 409, "conflict")


def test_what_nobody_used_may_become_private(lite: GatewayWorld) -> None:
    declare(lite)
    assert lite.ask("olga", "DELETE", "/public-datasets/cases").status_code == 204
    private = {"name": "b", "source": "s3://open/cases.jsonl"}
    assert lite.register(**private).status_code == 201


def test_who_declared_it_and_administrators_remove_it(world: GatewayWorld) -> None:
    world.ready()
    declare(world)
    refused(world.ask("oscar", "DELETE", "/public-datasets/cases"), 403, "forbidden")
    job = world.add_job("fit", public_data="cases")
    refused(world.ask("olga", "DELETE", "/public-datasets/cases"), 409, "conflict")
    world.set_job_state(job, "succeeded")
    assert world.ask("adam", "DELETE", "/public-datasets/cases").status_code == 204
    refused(world.ask("adam", "DELETE", "/public-datasets/cases"), 404, "not_found")
    assert world.ask("paul", "GET", "/public-datasets").json()["items"] == []
    assert world.ask("paul", "GET", "/public-datasets/cases").json()["removed"]
    refused(declare(world), 409, "conflict")
    text = refused(world.register(name="b", source="s3://open/cases.jsonl"), 409, "conflict")
    assert "unless a job has used it" in text


def test_rows_that_are_found_to_be_private_are_not_public(world: GatewayWorld) -> None:
    world.ready()
    references = References(world.gateway)
    marks: Any = {"places": ("a" * 32,), "contents": ("b" * 32,)}

    def is_public(**marks: Any) -> bool:
        text = SourceMarks(first=True, public=True, **marks)
        return world.gateway.write(lambda connection: references.is_public(connection, text))

    assert is_public(**marks)
    seen = SourceMarks(first=True, **marks)
    world.gateway.write(lambda connection: references.identify(connection, "phee", seen))
    assert not is_public(places=("c" * 32,), contents=("b" * 32,))
    assert is_public(places=("c" * 32,), contents=("d" * 32,))


def test_a_job_that_was_used_counts(lite: GatewayWorld) -> None:
    """Only jobs that name it: others leave it free."""
    lite.ready()
    declare(lite)
    job = lite.add_job("fit")
    change = update(jobs).where(jobs.c.id == job).values(state="succeeded")
    lite.gateway.write(lambda connection: connection.execute(change))
    lite.ask("olga", "DELETE", "/public-datasets/cases")
    assert lite.register(name="b", source="s3://open/cases.jsonl").status_code == 201
