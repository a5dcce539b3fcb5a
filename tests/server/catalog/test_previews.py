"""Previews: invented or paid-for rows that say which they are; selections tried on them."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.gateway import COLUMNS, GatewayWorld, refused
from taciturn.data.arrow_types import parse_type
from taciturn.data.sql.sandbox import table_of
from taciturn.server.catalog.mock_rows import rows_of
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.wire.datasets import ColumnView
from taciturn.wire.values import PolicyLine

PATH = "/datasets/phee/preview"
MOCK = [{"id": "12_1", "context": '{"text": "invented"}'}, {"id": "12_2", "other": 1}]


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "prompt": [""] * len(texts)}), file)
    return file.getvalue()


def synthesis(world: GatewayWorld, texts: list[str], **columns: Any) -> str:
    """A job that has written records with a model of `phee`."""
    model = world.add_model(world.add_job("fit", state="succeeded"))
    made = {"state": "succeeded", "model_id": model, **columns}
    job = world.add_job("synthesize", dataset=None, **made)
    world.files.contents[f"jobs/{job}/synthetic.parquet"] = parquet(texts)
    return job


def test_rows_of_the_schema_are_invented_and_say_so(lite: GatewayWorld) -> None:
    lite.ready()
    found = lite.ask("olga", "GET", PATH).json()
    assert found["policy"]["kind"] == "mock"
    assert "names and types" in found["policy"]["text"]
    assert found["rows"][0] == {"id": "id_1", "context": "context_1"}
    assert lite.ask("ann", "GET", PATH).json() == found


def test_mock_rows_are_the_owners_in_the_datas_columns(world: GatewayWorld) -> None:
    world.ready(mock=MOCK)
    found = world.ask("olga", "GET", PATH).json()
    assert found["policy"] == {"kind": "mock", "text": "mock (rows invented by the data's owner)"}
    assert found["rows"] == [MOCK[0], {"id": "12_2", "context": None}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": 2**64}], "64 bits"),
        ([{"id": "x" * 600_000}], "KB"),
        ([{"id": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}], "deep"),
        ([{"id": 1}] * 201, "mock"),
    ],
)
def test_mock_rows_are_plain_and_few(lite: GatewayWorld, rows: Any, words: str) -> None:
    assert words in refused(lite.register(mock=rows), 422, "invalid")


def test_mock_numbers_are_finite(lite: GatewayWorld) -> None:
    lite.ready()
    answer = lite.client.patch(
        "/v1/datasets/phee",
        content='{"mock": [{"id": Infinity}]}',
        headers={"Authorization": f"Bearer {lite.tokens['olga']}",
                 "Content-Type": "application/json"},
    )  # fmt: skip
    refused(answer, 422, "invalid")


def test_a_selection_is_run_on_the_preview_at_once(world: GatewayWorld) -> None:
    world.ready(mock=MOCK)
    world.grant()
    asked = {"select": "id, json_extract_string(context, '$.text') AS text"}
    found = world.ask("paul", "POST", "/datasets/phee/selections", asked).json()
    assert [column["name"] for column in found["columns"]] == ["id", "text"]
    assert found["rows"] == [{"id": "12_1", "text": "invented"}, {"id": "12_2", "text": None}]
    assert found["policy"]["kind"] == "mock"


@pytest.mark.parametrize("text", ["count(*)", "contexts", "read_text('/etc/passwd')", "(", "a;b"])
def test_a_selection_that_is_refused_says_why(lite: GatewayWorld, text: str) -> None:
    lite.ready()
    answer = lite.ask("olga", "POST", "/datasets/phee/selections", {"select": text})
    assert refused(answer, 422, "invalid")


def test_a_selection_reads_the_column_that_it_names(lite: GatewayWorld) -> None:
    """ID and id are two columns, and what nobody reads may be of any type."""
    types = {"ID": "int64", "id": "string", "Note": "string", "photo": "extension<a.tensor>"}
    columns = tuple(ColumnView(name=name, type=kind) for name, kind in types.items())
    lite.ready(columns=columns, mock=({"ID": 7, "id": "p1", "Note": "x"},))

    def tried(select: str) -> Any:
        return lite.ask("olga", "POST", "/datasets/phee/selections", {"select": select})

    found = tried('upper(id) AS unit, "ID" + 1 AS ID, note, *').json()
    assert refused(tried("upper(Id) AS x"), 422, "invalid")
    assert refused(tried("to_json(photo) AS x"), 422, "invalid")
    assert found["code"] == "invalid", "ID would be there twice"
    found = tried('upper(id) AS unit, "ID" + 1 AS n, *').json()
    assert found["rows"] == [
        {"unit": "P1", "n": 8, "ID": 7, "id": "p1", "Note": "x", "photo": None}
    ]
    kept = {each["name"]: each["type"] for each in found["columns"]}
    assert kept == {"unit": "string", "n": "int64", **types}


def test_who_may_try_selections(lite: GatewayWorld) -> None:
    lite.ready()
    asked = {"select": "id"}
    for who, status, code in (("paul", 404, "not_found"), ("oscar", 404, "not_found"),
                              ("adam", 403, "forbidden")):  # fmt: skip
        refused(lite.ask(who, "POST", "/datasets/phee/selections", asked), status, code)
        refused(lite.ask(who, "GET", PATH), status, code)


def test_there_is_no_preview_before_the_probe(lite: GatewayWorld) -> None:
    lite.register(mock=MOCK)
    refused(lite.ask("olga", "GET", PATH), 409, "not_ready")
    answer = lite.ask("olga", "POST", "/datasets/phee/selections", {"select": "id"})
    refused(answer, 409, "not_ready")


def test_records_that_were_paid_for_are_shown_under_their_guarantee(world: GatewayWorld) -> None:
    world.ready(mock=MOCK)
    job = synthesis(world, ['{"id": "7_1", "context": "c"}', "no json", "[1]"])
    found = world.ask("olga", "PUT", f"{PATH}/synthetic", {"job": job})
    assert found.status_code == 200, found.text
    assert found.json()["policy"] == {"kind": "DP", "text": "DP (epsilon=1, delta=1e-06, unit=id)"}
    assert found.json()["rows"] == [{"id": "7_1", "context": "c"}]
    world.files.contents.clear()  # kept: nothing is read again
    assert world.ask("ann", "GET", PATH).json() == found.json()
    assert world.ask("olga", "GET", "/datasets/phee").json()["preview"] == "synthetic"
    assert world.ask("olga", "DELETE", f"{PATH}/synthetic").status_code == 204
    assert world.ask("olga", "GET", PATH).json()["policy"]["kind"] == "mock"


def test_texts_may_stand_for_one_column_and_the_rest_says_mock(lite: GatewayWorld) -> None:
    lite.ready()
    job = synthesis(lite, ["one", "two", "three", "four"])
    asked = {"job": job, "column": "context"}
    found = lite.ask("olga", "PUT", f"{PATH}/synthetic", asked).json()
    assert found["policy"]["text"].endswith("in 'context'; the rest: mock")
    assert [row["context"] for row in found["rows"]] == ["one", "two", "three", "four"]
    assert found["rows"][3]["id"] == "id_1"
    asked = {"job": job, "column": "none"}
    refused(lite.ask("olga", "PUT", f"{PATH}/synthetic", asked), 422, "invalid")
    assert "to_json" in refused(
        lite.ask("olga", "PUT", f"{PATH}/synthetic", {"job": job}), 422, "invalid"
    )


def test_only_records_under_a_guarantee_become_a_preview(lite: GatewayWorld) -> None:
    lite.ready()
    bare = PolicyLine(kind="no guarantee", text="no guarantee (approved by a, b)")
    path = f"{PATH}/synthetic"
    for job, status, code in (
        (synthesis(lite, ["{}"], policy=bare), 403, "policy_refused"),
        (synthesis(lite, ["{}"], state="running"), 409, "not_ready"),
        (synthesis(lite, ["{}"], state="failed"), 409, "not_ready"),
        (lite.add_job("sample", state="succeeded"), 404, "not_found"),
        ("job_" + "0" * 20, 404, "not_found"),
    ):
        refused(lite.ask("olga", "PUT", path, {"job": job}), status, code)
    job = synthesis(lite, ["{}"])
    lite.files.contents[f"jobs/{job}/synthetic.parquet"] = b"PAR1 damaged"
    refused(lite.ask("olga", "PUT", path, {"job": job}), 422, "invalid")
    lite.files.contents.clear()
    refused(lite.ask("olga", "PUT", path, {"job": job}), 404, "not_found")
    assert lite.ask("olga", "GET", PATH).json()["policy"]["kind"] == "mock"


def test_records_of_another_dataset_are_not_taken(lite: GatewayWorld) -> None:
    lite.ready()
    lite.ready(name="b", source="/b.csv", budget=None)
    job = synthesis(lite, ["{}"])
    answer = lite.ask("olga", "PUT", "/datasets/b/preview/synthetic", {"job": job})
    refused(answer, 404, "not_found")


def test_invented_rows_fit_every_type() -> None:
    kinds = """string|int64|uint8|double|decimal128(5, 2)|bool|date32[day]|timestamp[us, tz=UTC]
time64[us]|time32[s]|list<item: int64>|large_string|struct<a: string, b: list<item: double>>
list<element: struct<who: string, what: decimal128(3, 1)>>""".replace("\n", "|").split("|")
    columns = [ColumnView(name=f"c{index}", type=kind) for index, kind in enumerate(kinds)]
    schema = pa.schema([(each.name, parse_type(each.type)) for each in columns])
    table = table_of(rows_of(columns), schema)
    assert table.num_rows == 3
    assert [name for name in table.column_names if table[name].null_count] == []
    assert rows_of(columns) == rows_of(columns)


def test_too_many_selections_at_once_are_put_off(
    lite: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite.ready()
    monkeypatch.setattr("taciturn.server.catalog.sql_sandbox._WAIT_S", 0.1)
    with lite.services.trials._one():
        answer = lite.ask("olga", "POST", "/datasets/phee/selections", {"select": "id"})
    refused(answer, 429, "too_many_requests")


def test_selections_take_milliseconds_once_libraries_are_loaded(trials: SqlSandbox) -> None:
    rows = rows_of(COLUMNS)
    trials.run("id", COLUMNS, rows)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: trials.run("upper(id) AS a", COLUMNS, rows), range(8)))
    assert len(done) == 8
    assert (time.monotonic() - started) / 8 < 1  # some 0.05 s where nothing else runs
