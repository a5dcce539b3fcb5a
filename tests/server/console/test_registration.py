"""Registration of datasets by forms: what REST takes and refuses, and what owners confirm."""

from __future__ import annotations

import html
import re

import pytest
from sqlalchemy import update

from support.console import look, send
from support.gateway import COLUMNS, GatewayWorld
from taciturn.server.schema.tables import jobs
from taciturn.wire.datasets import ColumnView

FIELDS = {
    "name": "ward",
    "source": "s3://hospital/ward.csv",
    "namespace": "ward-2026",
    "unit": "split_part(id, '_', 1)",
    "units": "1,100",
    "epsilon": "8",
    "delta": "1e-6",
    "description": "Notes of a ward",
    "names": "id\ncontext\n",
    "mock": '{"id": "n1", "context": "Mr Mock coughs."}\n\n{"id": "n2", "context": "Dry."}',
}


def test_a_form_registers_what_rest_registers(console: GatewayWorld) -> None:
    page = look(console, "olga", "/register")
    assert "s3://" in page.text, "it says where data may be"
    answer = send(console, "olga", "/register", **FIELDS)
    assert answer.headers["hx-redirect"] == "/datasets/ward"
    view = console.get("datasets/ward", "olga").json()
    assert (view["units"], view["namespace"], view["state"]) == (1100, "ward-2026", "probing")
    assert console.get("budgets/ward-2026", "olga").json()["epsilon"] == 8
    page = look(console, "olga", "/datasets/ward").text
    assert "A worker looks at the rows" in page
    assert 'hx-trigger="every 3s"' in page
    again = send(console, "olga", "/register", **FIELDS)
    assert again.headers["hx-redirect"] == "/datasets/ward", "the same request twice is one"


@pytest.mark.parametrize("who", ["paul", "ann", "adam"])
def test_owners_alone_register(console: GatewayWorld, who: str) -> None:
    assert look(console, who, "/register").status_code == 403
    assert look(console, who, "/register/budget?namespace=patients").status_code == 403
    assert send(console, who, "/register", **FIELDS).status_code == 403
    for end in ("columns", "probes", "change", "removal", "preview/removal"):
        assert send(console, who, f"/datasets/phee/{end}").status_code == 403


@pytest.mark.parametrize("end", ["columns", "probes", "change", "removal"])
def test_another_owner_changes_nothing(console: GatewayWorld, end: str) -> None:
    answer = send(console, "oscar", f"/datasets/phee/{end}", sure="phee", names="id")
    assert answer.status_code == 404
    assert look(console, "oscar", "/datasets/phee/change").status_code == 404
    console.grant("user:otto")
    assert look(console, "otto", "/datasets/phee/change").status_code == 403


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": "<b>"}, "name"),
        ({"units": "many"}, "units"),
        ({"units": "0"}, "units"),
        ({"epsilon": "-1"}, "epsilon"),
        ({"epsilon": "", "delta": ""}, "namespace"),
        ({"delta": "0.5"}, "delta"),
        ({"mock": "[1]"}, "line 1 is no JSON object"),
        ({"mock": '{"id": "n1"}\nnone'}, "line 2 is no JSON object"),
        ({"names": "id\nid"}, "twice"),
        ({"unit": "count(*)"}, "count"),
        ({"source": "/proc/self/environ"}, "source"),
        ({"namespace": "patients", "epsilon": "3"}, "in use"),
        ({"first_line": "row", "source": "s3://hospital/ward.parquet"}, "header"),
    ],
)
def test_what_rest_refuses_a_form_refuses(
    console: GatewayWorld, changes: dict[str, str], word: str
) -> None:
    before = console.entries()
    answer = send(console, "olga", "/register", **(FIELDS | changes))
    assert answer.status_code >= 400, answer.text
    assert answer.headers["hx-retarget"] == "#notice"
    assert word.lower() in html.unescape(answer.text).lower()
    assert console.entries() == before
    assert console.get("datasets/ward", "olga").status_code == 404


def test_a_namespace_says_what_it_needs(console: GatewayWorld) -> None:
    path = "/register/budget?namespace="
    assert 'name="epsilon"' in look(console, "olga", f"{path}new").text
    own = look(console, "olga", f"{path}patients").text
    assert 'name="epsilon"' not in own
    assert "100% are left" in own
    console.grant("user:otto")
    assert "olga's" in look(console, "otto", f"{path}patients").text
    assert 'name="epsilon"' in look(console, "oscar", f"{path}patients").text, "not known to him"


def waiting(world: GatewayWorld, columns: tuple[ColumnView, ...] | None) -> str:
    """Register `ward` without columns, and let a probe end."""
    send(world, "olga", "/register", **(FIELDS | {"names": ""}))
    world.probed("ward", columns)
    return look(world, "olga", "/datasets/ward").text


def test_columns_are_confirmed_as_they_were_shown(console: GatewayWorld) -> None:
    page = waiting(console, COLUMNS)
    assert "Are these names of columns?" in page
    hidden = re.search(r'name="columns" value="([^"]*)"', page)
    assert hidden is not None
    shown = html.unescape(hidden[1])
    answer = send(console, "olga", "/datasets/ward/columns", columns=shown[:-20])
    assert answer.status_code == 422
    other = shown.replace("context", "contents")
    assert send(console, "olga", "/datasets/ward/columns", columns=other).status_code == 409
    answer = send(console, "olga", "/datasets/ward/columns", columns=shown)
    assert answer.headers["hx-redirect"] == "/datasets/ward"
    assert console.get("datasets/ward", "olga").json()["state"] == "ready"
    assert "Are these names" not in look(console, "olga", "/datasets/ward").text


def test_columns_that_look_like_a_row_are_marked_and_shown_to_the_owner_alone(
    console: GatewayWorld,
) -> None:
    row = (ColumnView(name="P-10293", type="string"), ColumnView(name="Mr X", type="string"))
    page = waiting(console, row)
    assert "may be a value of a row" in page
    assert "looks like somebody" in html.unescape(page)
    console.grant("user:paul", namespace="ward-2026", epsilon=1.0)
    for who in ("paul", "ann"):
        other = look(console, who, "/datasets/ward")
        assert other.status_code == 200
        assert "P-10293" not in other.text
        assert "has yet to confirm" in other.text
    answer = send(console, "olga", "/datasets/ward/columns", first_line="row", names="id\nname")
    assert answer.headers["hx-redirect"] == "/datasets/ward"
    view = console.get("datasets/ward", "olga").json()
    assert (view["state"], view["header"]) == ("probing", False)


def test_rows_that_cannot_be_read_say_what_to_do(console: GatewayWorld) -> None:
    send(console, "olga", "/register", **FIELDS)
    failed = {"state": "failed", "failure": "data_unreadable", "incident": "inc_" + "0" * 20}
    change = update(jobs).where(jobs.c.dataset == "ward").values(**failed)
    console.gateway.write(
        lambda connection: console.services.datasets.probed(connection, "ward", None)
    )
    console.gateway.write(lambda connection: connection.execute(change))
    page = look(console, "olga", "/datasets/ward").text
    assert "The rows cannot be used as they are" in page
    assert "cannot reach or read the data" in page
    assert f"/incidents/inc_{'0' * 20}" in page
    assert f"/incidents/inc_{'0' * 20}" not in look(console, "ann", "/datasets/ward").text
    answer = send(console, "olga", "/datasets/ward/probes")
    assert answer.headers["hx-redirect"] == "/datasets/ward"
    fragment = look(console, "olga", "/datasets/ward/probe")
    assert "A worker looks" in fragment.text
    assert "hx-refresh" not in fragment.headers
    console.probed("ward", COLUMNS)
    assert look(console, "olga", "/datasets/ward/probe").headers["hx-refresh"] == "true"


def test_description_and_invented_rows_change_and_a_dataset_goes(console: GatewayWorld) -> None:
    fields = {"description": "Notes, anew", "mock": '{"id": "x", "context": "y"}'}
    answer = send(console, "olga", "/datasets/phee/change", **fields)
    assert answer.headers["hx-redirect"] == "/datasets/phee"
    page = look(console, "olga", "/datasets/phee/change").text
    assert "Notes, anew" in page
    assert html.escape('{"id": "x", "context": "y"}', quote=True).replace("&quot;", "&#34;") in page
    assert send(console, "olga", "/datasets/phee/change", mock="{").status_code == 422
    assert send(console, "olga", "/datasets/phee/removal", sure="other").status_code == 422
    answer = send(console, "olga", "/datasets/phee/removal", sure="phee")
    assert answer.headers["hx-redirect"] == "/datasets"
    assert look(console, "olga", "/datasets/phee").status_code == 404


def test_no_password_of_a_source_comes_back(console: GatewayWorld) -> None:
    source = "postgresql+psycopg://ada:hunter22@db/notes#rows"
    answer = send(console, "olga", "/register", **(FIELDS | {"source": source}))
    assert answer.status_code >= 400
    assert "hunter22" not in answer.text
