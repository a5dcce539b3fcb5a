"""Where owners may register data, and that no two budgets have the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, text

from support.gateway import GatewayWorld, refused
from taciturn.server.catalog.references import References, own_places
from taciturn.server.database import open_database
from taciturn.server.schema import versions
from taciturn.server.schema.tables import datasets, jobs, source_marks, users
from taciturn.wire.worker import SourceMarks

FILE, COPY, NEWER = ({"places": (each * 32,), "contents": (each * 31 + "0",)} for each in "abc")


def sources(world: GatewayWorld, who: str, *prefixes: str, by: str = "adam") -> Any:
    return world.ask(by, "PATCH", f"/users/{who}", {"sources": prefixes})


def add(world: GatewayWorld, who: str, name: str, namespace: str, source: str) -> Any:
    return world.register(who, name=name, namespace=namespace, source=source)


def identified(world: GatewayWorld, dataset: str, *, first: bool = True, **marks: Any) -> bool:
    found = SourceMarks(first=first, **marks)
    references = References(world.gateway)
    return world.gateway.write(lambda connection: references.identify(connection, dataset, found))


@pytest.fixture
def two(world: GatewayWorld) -> GatewayWorld:
    """Two owners with a dataset each, under a budget each."""
    for who, name in (("olga", "a"), ("oscar", "b")):
        world.ready(who, name=name, namespace=f"of-{who}", source=f"/data/{who}/{name}.csv")
    return world


def strict(world: GatewayWorld, *prefixes: str, **settings: Any) -> GatewayWorld:
    """The same, where every owner may register these alone."""
    told = world.gateway.settings.model_copy(update={"source_prefixes": prefixes, **settings})
    object.__setattr__(world.gateway, "settings", told)
    return world


def test_nothing_may_be_registered_until_an_administrator_says_where(lite: GatewayWorld) -> None:
    strict(lite)
    for source in ("s3://hospital/phee.parquet", "/data/a.csv", "https://data.example/a.csv"):
        assert "taciturn user change" in refused(lite.register(source=source), 403, "forbidden")
    answer = sources(lite, "olga", "s3a://world", "/data//olga/")
    assert answer.json()["sources"] == ["s3://world", "/data/olga/"]
    assert lite.ask("ann", "GET", "/users/olga").json()["sources"] == answer.json()["sources"]
    refused(lite.register(source="/data/oscar/a.csv"), 403, "forbidden")
    refused(lite.register("oscar", source="/data/olga/a.csv"), 403, "forbidden")
    refused(lite.register(source="s3://world-b/a.csv"), 403, "forbidden")
    assert lite.register(source="FILE:///data/olga//a.csv").status_code == 201
    assert lite.register(source="/data/olga/a.csv").status_code == 201  # the same request
    assert lite.ask("olga", "GET", "/datasets/phee").json()["source"] == "/data/olga/a.csv"
    sources(lite, "olga")
    refused(lite.register(name="b", source="/data/olga/b.csv"), 403, "forbidden")


def test_who_says_where_is_an_administrator_and_not_the_owner(lite: GatewayWorld) -> None:
    for who in ("olga", "paul", "ann"):
        refused(sources(lite, "olga", "/data/", by=who), 403, "forbidden")
    refused(sources(lite, "adam", "/data/"), 403, "separation_of_duty")
    for wrong in ("data", "/data/*/", "ftp://a/", "https://a:b@c/", "/proc/"):
        refused(sources(lite, "olga", wrong), 422, "invalid")
    assert lite.ask("adam", "GET", "/users/olga").json()["sources"] == []


def test_a_person_may_be_let_in_with_sources(lite: GatewayWorld) -> None:
    body = {"name": "orla", "roles": ["owner"], "sources": ["https://Data.Example:443/"]}
    made = lite.ask("adam", "POST", "/users", body, Idempotency_Key="key-0000001")
    assert made.json()["sources"] == ["https://data.example/"]


def test_the_gateways_own_folder_and_stores_are_never_a_source(lite: GatewayWorld) -> None:
    strict(lite, "/", "s3://", storage_url="s3://released/files")
    folder = lite.gateway.settings.data_dir.absolute()
    for source in (f"{folder}/workspaces/a.arrow", f"{folder}/", f"{folder.parent}/", "/"):
        refused(lite.register(source=source), 422, "invalid")
    refused(lite.register(source="s3://released/files/a.csv"), 422, "invalid")
    assert lite.register(source="s3://released/other.csv").status_code == 201
    database = SecretStr("postgresql+psycopg://u:p@DB:5432/gateway")
    strict(lite, "postgresql+psycopg://", database_url=database)
    refused(lite.register(source="postgresql+psycopg://db/gateway#tokens"), 422, "invalid")
    assert "u:p@" not in str(own_places(lite.gateway))


@pytest.mark.parametrize("other", ["s3a://hospital/phee.parquet", "S3://hospital/phee.parquet"])
def test_another_spelling_is_the_same_source(lite: GatewayWorld, other: str) -> None:
    lite.ready()
    refused(add(lite, "oscar", "b", "n2", other), 409, "conflict")
    refused(add(lite, "olga", "b", "n2", other), 409, "conflict")


def test_a_place_that_was_registered_in_another_spelling_is_known(lite: GatewayWorld) -> None:
    """Before there was one spelling, texts were kept as they were given."""
    lite.ready(source="/data/a.csv")
    change = datasets.update().values(source="file:///data//a.csv")
    lite.gateway.write(lambda connection: connection.execute(change))
    refused(add(lite, "oscar", "b", "n2", "/data/a.csv"), 409, "conflict")
    assert lite.register(source="/data/a.csv").status_code == 201  # the same request


def test_a_worker_that_finds_the_same_file_elsewhere_stops(two: GatewayWorld) -> None:
    assert identified(two, "a", **FILE)
    for marks in (
        {"places": FILE["places"]},
        {"places": COPY["places"], "contents": FILE["contents"]},
        {"places": (*COPY["places"], *FILE["places"]), "contents": COPY["contents"]},
    ):
        assert not identified(two, "b", **marks)
    assert identified(two, "b", **COPY)
    assert not identified(two, "a", **COPY)


def test_what_was_refused_leaves_nothing_that_would_refuse_others(two: GatewayWorld) -> None:
    assert identified(two, "a", **FILE)
    assert not identified(two, "b", places=(*FILE["places"], *NEWER["places"]))
    assert identified(two, "a", **NEWER)


def test_one_budget_may_have_the_same_rows_twice(two: GatewayWorld) -> None:
    two.ready("olga", name="again", namespace="of-olga", source="/data/olga/c.csv", budget=None)
    assert identified(two, "a", **FILE)
    assert identified(two, "again", **FILE)


def test_a_new_version_goes_on_under_its_budget_and_the_old_one_stays_there(
    two: GatewayWorld,
) -> None:
    assert identified(two, "a", **FILE)
    add_fit(two, "a")
    assert identified(two, "a", **NEWER)
    assert identified(two, "a", **NEWER)
    assert identified(two, "b", places=FILE["places"])  # something else came to its place
    assert not identified(two, "b", places=COPY["places"], contents=FILE["contents"])


def test_a_version_that_no_job_has_used_is_forgotten(two: GatewayWorld) -> None:
    assert identified(two, "a", **FILE)
    assert identified(two, "a", **NEWER)
    assert identified(two, "b", **FILE)


def test_further_files_of_a_source_are_added(two: GatewayWorld) -> None:
    assert identified(two, "a", **FILE)
    assert identified(two, "a", first=False, **NEWER)
    assert not identified(two, "b", **FILE)
    assert not identified(two, "b", **NEWER)


def test_what_was_removed_counts_if_a_job_has_used_it(two: GatewayWorld) -> None:
    assert identified(two, "a", **FILE)
    assert two.ask("olga", "DELETE", "/datasets/a").status_code == 204
    add_fit(two, "a")
    assert not identified(two, "b", **FILE)


def test_what_was_removed_before_any_job_may_go_elsewhere(two: GatewayWorld) -> None:
    assert identified(two, "a", **FILE)
    assert two.ask("olga", "DELETE", "/datasets/a").status_code == 204
    assert identified(two, "b", **FILE)


def test_workers_look_at_what_was_registered_before_they_compared(two: GatewayWorld) -> None:
    """Once, until one has told; not at what is removed."""
    two.gateway.write(lambda connection: connection.execute(jobs.update().values(state="failed")))
    assert identified(two, "a", **FILE)
    two.ready("olga", name="c", namespace="of-olga", source="/data/olga/c.csv", budget=None)
    two.ask("olga", "DELETE", "/datasets/c")
    two.gateway.write(lambda connection: connection.execute(jobs.update().values(state="failed")))
    for _ in range(2):
        two.services.registrations.resume()
        assert waiting(two) == ["b"]


def waiting(world: GatewayWorld) -> list[str]:
    query = select(jobs.c.dataset).where(jobs.c.kind == "probe", jobs.c.state == "queued")
    return world.gateway.read(lambda connection: list(connection.execute(query).scalars()))


def add_fit(world: GatewayWorld, dataset: str) -> None:
    world.add_job("fit", dataset, requester="olga", state="succeeded", namespace="of-olga")


def test_a_worker_is_told_its_limits(two: GatewayWorld) -> None:
    strict(two, "/data/", source_networks=())
    sources(two, "olga", "s3://hospital/")
    row = select(datasets).where(datasets.c.name == "a")
    references = References(two.gateway)
    told = two.gateway.read(
        lambda connection: references.of(connection, connection.execute(row).one())
    )
    assert told.prefixes == ("/data/", "s3://hospital/")
    assert f"{two.gateway.settings.data_dir.absolute()}/" in told.own
    assert len(bytes.fromhex(told.mark_key)) == 32
    assert told.mark_key not in repr(told)


@pytest.fixture
def empty_database(empty_url: str) -> Iterator[Engine]:
    engine = open_database(empty_url)
    yield engine
    engine.dispose()


def test_owners_keep_what_they_had_registered(empty_database: Engine) -> None:
    """The upgrade of an installation that had no prefixes."""
    versions.upgrade(empty_database, "0002")
    with empty_database.begin() as connection:
        connection.execute(
            text("INSERT INTO ledger_accounts VALUES ('n', 1, 1, 0.1, '', '', 0, 0, '', '')")
        )
        for user in ("olga", "oscar"):
            _insert(connection, "users", id=user, name=user, roles="[]", disabled=False)
        _insert(
            connection, "policies", namespace="n", owner_id="olga", terms="{}", version=1,
            settled_version=1, updated_at_ms=0,
        )  # fmt: skip
        for name, source, removed in (("a", "/data/*.csv", None), ("b", "s3://b/c.csv", 1)):
            _insert(
                connection, "datasets", name=name, namespace="n", owner_id="olga", source=source,
                unit="id", units=9, state="ready", mock="[]", split_key="", removed_at_ms=removed,
            )  # fmt: skip
    versions.upgrade(empty_database)
    with empty_database.connect() as connection:
        found = dict(connection.execute(select(users.c.id, users.c.sources)).all())  # type: ignore[arg-type]
        assert {name: json.loads(kept) for name, kept in found.items()} == {
            "olga": ["/data/*.csv"],
            "oscar": [],
        }
        assert connection.execute(select(source_marks)).all() == []


def _insert(connection: Any, table: str, **values: Any) -> None:
    values = {"created_at_ms": 0, **values}
    names = ", ".join(values)
    words = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({words})"), values)
