"""A hundred hostile strings in every field that people can name: text on every page, no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import Connection, insert, update

from support.client import Client
from support.console import send
from support.gateway import DATASET, NAMESPACE, GatewayWorld, fit, new_dataset, plan_of
from support.hostile import HOSTILE, PRINTABLE, Injected
from support.pages import ROLE_OF, HangUp, console_forms, console_pages, furnished
from support.released_files import report
from taciturn.server.identity.permissions import PERMISSIONS
from taciturn.server.identity.secret import new_id
from taciturn.server.schema.tables import (
    approvals,
    audit_log,
    datasets,
    decisions,
    incidents,
    jobs,
    tokens,
    users,
)

HTML = {"Accept": "text/html,*/*"}


@pytest.fixture
def hostile_world(lite: GatewayWorld) -> tuple[GatewayWorld, dict[str, str], Client]:
    """A furnished gateway, what it holds, and a client whose streams end at once."""
    world = lite.populate()
    things = furnished(world)
    app = HangUp(world.app)
    client = Client(app, base_url="https://testserver", raise_server_exceptions=False)
    return world, things, client


def check(answer: Response, place: str, *, parts: bool = False) -> set[int]:
    """Check an answer; returns the numbers of the strings that it shows.

    Args:
        parts: a part of a string may be shown as text: a column that SQL names, a line of a list.
    """
    assert answer.status_code != 500, (place, answer.text)
    assert "x-evil" not in answer.headers, place
    assert "evil" not in answer.headers.get("set-cookie", ""), place
    if not answer.headers.get("content-type", "").startswith("text/html"):
        return set()
    injected = Injected(answer.text)
    places = [found for found in injected.places if not (parts and found.startswith("text: "))]
    assert places == [], place
    return injected.shown


def look_at_all(world: GatewayWorld, things: dict[str, str], client: Client) -> set[int]:
    """Look at every page as everybody; returns the numbers of the strings that were shown."""
    shown: set[int] = set()
    for page in console_pages(world.app, things):
        for who, role in ROLE_OF.items():
            if not page.is_for(role):
                continue
            address: str | None = page.address
            while address is not None:  # older pages of lists
                answer = client.get(address, headers=world.headers(who) | HTML)
                shown |= check(answer, f"{address} as {who}")
                cursor = answer.text.partition('href="?cursor=')[2].partition('"')[0]
                address = f"{page.address}?cursor={cursor}" if cursor else None
    return shown


def test_a_string_that_is_taken_as_html_is_seen() -> None:
    """The mutant: a page that escapes nothing, or not in attributes."""
    harmful = [text for text in HOSTILE if any(sign in text for sign in ("</", "<s", "<i", "<d"))]
    assert len(harmful) > 40
    for text in harmful:
        assert Injected(f"<p>{text}</p>").places, text
        assert Injected(f'<p title="{escape(text)}">{escape(text)}</p>').places == [], text
    for text in HOSTILE:
        assert Injected(f"<p>{escape(text)}</p>").shown == {HOSTILE.index(text)}
        if '"' in text:
            assert Injected(f'<p title="{text}">').places
    assert Injected(f'<a href="{escape(HOSTILE[25])}">').places, "a script as an address"


LISTS = {"select", "models", "approvers", "names", "sources", "groups", "columns"}
"""Fields that are read as SQL, or by lines or words."""


QUICK = pytest.param(False, marks=pytest.mark.quick)
THOROUGH = pytest.param(True, marks=pytest.mark.thorough)
FEW, SOME = 8, 24


def strings_of(number: int) -> tuple[str, ...]:
    """Return all strings in an order that begins with some of every kind, another for each field:
    the few that a quick run tries in a field are others elsewhere."""
    spread = (HOSTILE[(number * 7 + step * 13) % len(HOSTILE)] for step in range(len(HOSTILE)))
    return tuple(dict.fromkeys((*HOSTILE[-2:], *spread)))


def takes_or_quotes(answer: Response) -> bool:
    """Whether a string was accepted, or stands in what comes back, or a page does."""
    is_page = answer.headers.get("content-type", "").startswith("text/html")
    return answer.is_success or is_page or "zqzq" in answer.text


@pytest.mark.parametrize("all_of_them", [QUICK, THOROUGH])
def test_every_field_of_every_form(
    hostile_world: tuple[GatewayWorld, dict[str, str], Client], all_of_them: bool
) -> None:
    """A field that refuses two dozen strings of all kinds, and quotes none, is tried with no more:
    most are numbers, and what refuses them has looked at no more than that."""
    world, things, client = hostile_world
    fields, used = 0, set[str]()
    for form in console_forms(world.app, things):
        who = next((who for who, role in ROLE_OF.items() if _may(form.needs, role)), None)
        assert who is not None, form.template
        headers = world.headers(who) | HTML | {"HX-Request": "true"}
        for name in form.texts:
            fields += 1
            goes_on = False
            for number, text in enumerate(strings_of(fields)):
                if number == (SOME if all_of_them else FEW) and not (all_of_them and goes_on):
                    break
                used.add(text)
                answer = client.post(
                    form.address, data={**form.values, name: text}, headers=headers
                )
                check(answer, f"{name}={text!r} to {form.address}", parts=name in LISTS)
                goes_on |= takes_or_quotes(answer)
                target = answer.headers.get("hx-redirect", "")
                assert target.isascii()
                assert "\n" not in target
                if target.startswith("/") and answer.status_code == 204:
                    check(client.get(target, headers=world.headers(who) | HTML), target)
    assert fields > 8
    assert len(used) == 100 or not all_of_them
    look_at_all(world, things, client)


def _may(needs: frozenset[Any], role: Any) -> bool:
    return all(role in PERMISSIONS[action] for action in needs)


def bodies(text: str) -> Iterator[tuple[str, str, str, Any]]:
    """Return requests of the REST API in whose named fields a text stands."""
    dataset = new_dataset(name="other", namespace=NAMESPACE, budget=None)
    for field in ("name", "source", "unit", "namespace", "description"):
        yield "olga", "POST", "/datasets", {**dataset, field: text}
    yield "olga", "POST", "/datasets", {**dataset, "columns": [text], "mock": [{text: text}]}
    yield "olga", "PATCH", f"/datasets/{DATASET}", {"description": text}
    yield "olga", "PATCH", f"/datasets/{DATASET}", {"mock": [{text: text, "context": text}]}
    grant = {"epsilon": 0.1, "delta": 1e-7}
    yield "olga", "PUT", f"/policies/{NAMESPACE}/grants/user:{text}", grant
    for field in ("name", "purpose", "text_field", "model"):
        yield "paul", "POST", "/jobs", fit(target_epsilon=0.01, **{field: text})
    yield "paul", "POST", "/jobs", fit(data={"dataset": DATASET, "select": text})
    yield "paul", "POST", f"/datasets/{DATASET}/select", {"select": text}
    yield "paul", "POST", "/tokens", {"name": text, "expires_in_days": 1}
    yield "adam", "POST", "/users", {"name": text, "roles": ["practitioner"]}
    yield (
        *("adam", "POST", "/users"),
        {"name": "new", "display_name": text, "roles": [], "groups": [text], "sources": [text]},
    )
    yield "paul", "POST", "/login-requests", {"host": text}
    facts = {"parameters": 1, "context_length": 8, "vocabulary": 8}
    yield "adam", "POST", "/base-models", {"name": text, **facts}


@pytest.mark.parametrize("all_of_them", [QUICK, THOROUGH])
def test_every_name_that_a_program_gives(
    hostile_world: tuple[GatewayWorld, dict[str, str], Client], all_of_them: bool
) -> None:
    world, things, client = hostile_world
    for number, text in enumerate(HOSTILE if all_of_them else HOSTILE[::9]):
        for who, method, path, body in bodies(text):
            safe = path.replace("\r", "").replace("\n", "").replace("\x00", "")
            answer = world.ask(who, method, safe, body, Idempotency_Key=f"key-{number:06}")
            assert answer.status_code != 500, (path, body, answer.text)
    look_at_all(world, things, client)


def test_what_is_stored_is_text_whoever_let_it_in(
    hostile_world: tuple[GatewayWorld, dict[str, str], Client],
) -> None:
    """Also what no form of today lets in: it may come from a provider of identities, a probe, a
    worker, or an earlier version."""
    world, things, client = hostile_world
    texts = [text.replace("\x00", "") for text in HOSTILE]
    world.gateway.write(lambda connection: _store(connection, world, things, texts))
    shown = look_at_all(world, things, client)
    assert shown == set(range(100)), "all have been on some page"


def _store(
    connection: Connection, world: GatewayWorld, things: dict[str, str], texts: list[str]
) -> None:
    now_ms, paul, olga = world.gateway.now_ms(), world.users["paul"], world.users["olga"]
    columns = json.dumps([{"name": text, "type": text[:20]} for text in texts])
    mock = json.dumps([{text: text for text in texts}])
    change = {"columns": columns, "mock": mock, "description": "\n".join(texts)}
    connection.execute(
        update(datasets).where(datasets.c.name == DATASET).values(source=texts[9], **change)
    )
    connection.execute(
        update(incidents)
        .where(incidents.c.id == things["incidents"])
        .values(log="\n".join(texts).encode())
    )
    for number, several_lines in enumerate(texts):
        text = re.sub(r"[\r\n]+", " ", several_lines)
        body = {**fit(), "name": text, "purpose": text, "model": text, "text_field": text}
        job = new_id("job")
        row = {
            "id": job,
            "kind": "fit",
            "state": "awaiting_approval",
            "requester_id": paul,
            "namespace": NAMESPACE,
            "dataset": DATASET,
            "request": json.dumps(body),
            "plan": json.dumps({**plan_of(fit()), "note": text}),
            "grants": "[]",
            "attempt": 1,
            "cancel": False,
            "policy": json.dumps({"kind": "DP", "text": text}),
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }
        connection.execute(insert(jobs).values(row))
        approval = {
            "id": new_id("apr"),
            "job_id": job,
            "namespace": NAMESPACE,
            "reason": "no_guarantee",
            "request": "0" * 64,
            "needed": 2,
            "state": "open",
            "expires_at_ms": now_ms + 10**9,
            "created_at_ms": now_ms,
        }
        connection.execute(insert(approvals).values(approval))
        decision = {"approver_id": olga, "decision": "approved", "created_at_ms": now_ms}
        connection.execute(
            insert(decisions).values(approval_id=approval["id"], comment=text, **decision)
        )
        person = {
            "id": new_id("usr"),
            "name": f"someone-{number}",
            "display_name": text,
            "roles": "[]",
            "disabled": False,
            "sources": json.dumps([text]),
            "created_at_ms": now_ms,
        }
        connection.execute(insert(users).values(person))
        connection.execute(
            insert(tokens).values(
                id=new_id("tok"),
                kind="api",
                user_id=paul,
                name=text,
                digest="0" * 64,
                scopes="[]",
                created_at_ms=now_ms,
                expires_at_ms=now_ms + 10**9,
            )
        )
        connection.execute(
            insert(audit_log).values(
                at_ms=now_ms,
                actor=text,
                action=text[:60],
                resource=text,
                status=200,
                request_id=new_id("req"),
                address=text[:60],
            )
        )


def test_a_job_and_its_model_with_a_hostile_name(
    hostile_world: tuple[GatewayWorld, dict[str, str], Client],
) -> None:
    for text in PRINTABLE[::5]:
        look_at_job_and_model(*hostile_world, text)


def look_at_job_and_model(
    world: GatewayWorld, things: dict[str, str], client: Client, text: str
) -> None:
    job = world.add_job("fit", state="succeeded", request={**fit(), "name": text, "purpose": text})
    model = world.add_model(job, name=text, report=report(base_model=text).model_dump_json())
    for who in ("olga", "paul", "ann"):
        for path in (f"/jobs/{job}", f"/models/{model}", "/models", "/jobs", "/"):
            check(client.get(path, headers=world.headers(who) | HTML), path)


@pytest.mark.parametrize("all_of_them", [QUICK, THOROUGH])
def test_an_error_of_sql_quotes_a_selection_as_text(
    hostile_world: tuple[GatewayWorld, dict[str, str], Client], all_of_them: bool
) -> None:
    world, _, _ = hostile_world
    shown = set()
    for text in HOSTILE if all_of_them else HOSTILE[::8]:
        quoted = text.replace('"', "")
        for select in (text, f'"{quoted}" AS x', f"'{text}' AS x", f"upper({text}"):
            answer = send(world, "paul", f"/datasets/{DATASET}/selections", select=select)
            assert answer.status_code != 500, select
            assert "<script>" not in answer.text
            shown |= {answer.status_code}
    assert shown <= {200, 422}


def test_addresses_lead_nowhere_else(
    hostile_world: tuple[GatewayWorld, dict[str, str], Client],
) -> None:
    """A hostile string as part of an address, or of a query."""
    world, things, client = hostile_world
    for text in PRINTABLE[::4]:
        hostile_things = {name: text.replace("/", "%2F").replace("?", "%3F") for name in things}
        for page in console_pages(world.app, hostile_things):
            if "{" not in page.template or "#" in page.address:
                continue
            answer = client.get(page.address, headers=world.headers("olga") | HTML)
            check(answer, page.address)
    names = ("cursor", "state", "kind", "actor", "next", "dataset")
    for number, text in enumerate(PRINTABLE):
        path = ("/jobs", "/audit-log", "/sign-in", "/plan", "/datasets")[number % 5]
        headers = world.headers("olga") | HTML
        answer = client.get(path, params={names[number % 6]: text}, headers=headers)
        check(answer, f"{path} {names[number % 6]}={text!r}")
