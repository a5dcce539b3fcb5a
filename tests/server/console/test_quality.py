"""All pages, found from the application: whom they are for, what they carry, what they hide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import Engine

from support.client import Client
from support.gateway import GatewayWorld
from support.pages import (
    BY_CODE,
    ROLE_OF,
    SECRETS,
    SPLIT_KEY,
    HangUp,
    Page,
    console_forms,
    console_pages,
    furnished,
)
from taciturn.server.console.routers import ROUTERS
from taciturn.server.http.openapi import operations
from taciturn.server.identity.secret import new_id

HTML = {"Accept": "text/html,*/*"}
FULL_BYTES = 100_000


@dataclass(frozen=True)
class Tour:
    """A furnished gateway, and a client that looks at its pages."""

    world: GatewayWorld
    things: dict[str, str]
    client: Client

    @property
    def pages(self) -> list[Page]:
        """All pages."""
        return console_pages(self.world.app, self.things)

    def look(self, who: str | None, address: str, **headers: str) -> Response:
        """Open a page as somebody, or as nobody."""
        person = {} if who is None else self.world.headers(who)
        return self.client.get(address, headers=person | HTML | headers, follow_redirects=False)


@pytest.fixture(scope="module")
def tour(open_copy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    folder: Path = tmp_path_factory.mktemp("tour")
    engine: Engine = open_copy(folder)
    world = GatewayWorld.open(engine, folder, anonymous_per_minute=10**6).populate()
    things = furnished(world)
    client = Client(HangUp(world.app), base_url="https://testserver", raise_server_exceptions=False)
    yield Tour(world, things, client)
    engine.dispose()


class Elements(HTMLParser):
    """Elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def of(self, *tags: str) -> list[dict[str, str]]:
        """Attributes of all elements of these names."""
        return [attributes for tag, attributes in self.elements if tag in tags]


def own_address(value: str) -> bool:
    return value.startswith(("/", "#", "?")) and not value.startswith(("//", "/\\"))


def test_every_route_of_the_console_is_in_the_deny_matrix(tour: Tour) -> None:
    """The matrix asks for everything that `operations` names."""
    named = {(op.method, op.path) for op in operations(tour.world.app)}
    own = {
        (method, route.path_format)  # type: ignore[attr-defined]
        for router in ROUTERS
        for route in router.routes
        for method in route.methods  # type: ignore[attr-defined]
    }
    assert len(own) > 30
    assert own <= named


def test_a_page_is_for_the_roles_that_its_route_names(tour: Tour) -> None:
    for page in tour.pages:
        for who, role in ROLE_OF.items():
            answer = tour.look(who, page.address)
            if not page.is_for(role):
                assert answer.status_code == 403, (page.address, who)
                assert not any(word in answer.text for word in SECRETS), page.address
            else:
                assert answer.status_code in (200, 204, 303, 403, 404, 409), (page.address, who)
                assert "not for your" not in answer.text


def test_every_page_is_seen_by_somebody(tour: Tour) -> None:
    """Else an address that leads nowhere would pass all that is looked for here."""
    for page in tour.pages:
        answers = [tour.look(who, page.address) for who in ROLE_OF]
        assert any(answer.status_code in (200, 204, 303) for answer in answers), page.address
    shown = "".join(tour.look("olga", page.address).text for page in tour.pages)
    assert [word for word in SECRETS if word not in shown] == []


def test_who_is_not_signed_in_sees_nothing(tour: Tour) -> None:
    for page in tour.pages:
        answer = tour.look(None, page.address)
        if page.public:
            assert answer.status_code == 200, page.address
        else:
            assert answer.status_code == 303, page.address
            assert answer.headers["location"].startswith("/sign-in?next=/")
        assert not any(word in answer.text for word in SECRETS)


@pytest.mark.parametrize("who", ["petra", "oscar"])
def test_what_somebody_may_not_know_of_looks_like_what_is_not_there(tour: Tour, who: str) -> None:
    """petra has no grant, oscar owns other data: a page of what they may not know of says neither
    its words nor that it exists."""
    none = {name: _nothing_like(value) for name, value in tour.things.items()}
    for page, other in zip(tour.pages, console_pages(tour.world.app, none), strict=True):
        answer, blank = tour.look(who, page.address), tour.look(who, other.address)
        assert answer.status_code != 500, page.address
        assert not any(word in answer.text for word in SECRETS), page.address
        if page.address.startswith((BY_CODE, "/public-datasets/")):
            continue  # for everybody
        if "{" in page.template and blank.status_code == 404:
            assert answer.status_code == 404, page.address
            assert _without(answer.text, tour.things) == _without(blank.text, none), page.address


def _nothing_like(value: str) -> str:
    return new_id(value.split("_")[0]) if re.match(r"[a-z]+_", value) else "nothing"


def _without(text: str, things: dict[str, str]) -> str:
    for value in sorted(things.values(), key=len, reverse=True):
        text = text.replace(value, "*")
    return text


@pytest.mark.parametrize("who", ["petra", "oscar", "ann", "adam"])
def test_a_form_of_somebody_elses_changes_nothing(tour: Tour, who: str) -> None:
    """Whoever has no part in a thing cannot change it, also where their role knows the form."""
    for form in console_forms(tour.world.app, tour.things):
        if "{" not in form.template or form.address.startswith(("/account", BY_CODE)):
            continue
        headers = tour.world.headers(who) | HTML | {"HX-Request": "true"}
        answer = tour.client.post(form.address, data=dict(form.values), headers=headers)
        if who == "adam" and not answer.is_error:
            continue  # an administrator's own
        if who == "ann" and answer.status_code == 200:
            continue  # she reads everything, and writes nothing
        assert answer.status_code in (403, 404, 409, 422), (form.address, answer.text)
        assert not any(word in answer.text for word in SECRETS), form.address


def test_a_page_loads_from_here_alone_and_is_kept_nowhere(tour: Tour) -> None:
    for page in tour.pages:
        for who, role in ROLE_OF.items():
            if not page.is_for(role):
                continue
            answer = tour.look(who, page.address)
            assert answer.headers["cache-control"] == "no-store", page.address
            assert answer.headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            elements = Elements(answer.text)
            for tag, attributes in elements.elements:
                assert not {n for n in attributes if n.startswith(("on", "hx-on"))}, page.address
                assert "style" not in attributes, (page.address, tag)
                for name in ("src", "href", "action", "hx-get", "hx-post", "hx-sse:connect"):
                    if name in attributes:
                        assert own_address(attributes[name]), (page.address, tag, attributes)
            if page.template != "/password":  # whose one line is named by its digest
                assert all("src" in script for script in elements.of("script")), page.address
                assert not elements.of("style"), page.address


def test_a_page_holds_no_secret(tour: Tour) -> None:
    tokens = [token.split("_", 2)[2] for token in tour.world.tokens.values()]
    key = tour.world.gateway.seal_key.to_text()
    for page in tour.pages:
        for who in ROLE_OF:
            answer = tour.look(who, page.address)
            shown = answer.text + str(answer.headers)
            assert not any(secret in shown for secret in [*tokens, key, SPLIT_KEY]), page.address


def test_a_page_is_small(tour: Tour) -> None:
    for page in tour.pages:
        for who in ROLE_OF:
            answer = tour.look(who, page.address)
            assert int(answer.headers.get("content-length", 0)) < FULL_BYTES, page.address


def test_a_page_can_be_read_without_seeing_it(tour: Tour) -> None:
    """Each has one first heading, a title, a label for every field, and names for its tables'
    rows and columns."""
    for page in tour.pages:
        for who, role in ROLE_OF.items():
            if not page.is_for(role):
                continue
            answer = tour.look(who, page.address)
            if answer.status_code != 200 or "<html" not in answer.text:
                continue
            elements = Elements(answer.text)
            assert len(elements.of("h1")) == 1, page.address
            assert re.search(
                r"<title>[^<]+ · taciturn</title>|<title>taciturn</title>", answer.text
            )
            ids = [attributes["id"] for _, attributes in elements.elements if "id" in attributes]
            assert len(ids) == len(set(ids)), (page.address, sorted(ids))
