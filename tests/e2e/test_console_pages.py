"""Every page of the console in a real browser: for everybody who reads, however they read."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from support.browser import NARROW, WIDE, ZOOMED, Window, chromium, served, window, window_of
from support.databases import open_quickly
from support.gateway import DATASET, NAMESPACE, PASSWORD, GatewayWorld
from support.hostile import HOSTILE
from support.pages import ROLE_OF, console_pages, furnished
from taciturn.server.schema import versions
from taciturn.server.schema.tables import datasets
from taciturn.wire.identity import Role

axe = pytest.importorskip("axe_playwright_python.base", reason="axe is not installed")

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

SIZES = (WIDE, ZOOMED, NARROW)
SCROLLED = """[...document.querySelectorAll(".scroll:not(.short)")]
  .filter((part) => part.scrollWidth > part.clientWidth + 1)
  .map((part) => part.querySelector("th")?.textContent ?? part.textContent.slice(0, 40))"""
FOCUSED = """() => {
  const at = document.activeElement, box = at.getBoundingClientRect(), style = getComputedStyle(at);
  return {
    tag: at.tagName.toLowerCase(), text: (at.innerText || at.name || "").slice(0, 40),
    skip: at.classList.contains("skip"), inMenu: Boolean(at.closest("nav")),
    seen: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
      || at.classList.contains("skip"),
    shown: box.width > 0 && box.height > 0, body: at === document.body,
    order: [...document.querySelectorAll("*")].indexOf(at),
  };
}"""


@dataclass(frozen=True, eq=False)
class Site:
    """A furnished gateway that is served, and a browser."""

    world: GatewayWorld
    things: dict[str, str]
    url: str
    browser: Any

    def addresses(self, who: str) -> list[str]:
        """Return the pages that somebody may open, without parts of pages and streams."""
        every = console_pages(self.world.app, self.things)
        pages = [page for page in every if page.is_for(ROLE_OF[who]) and not page.public]
        running = [f"/jobs/{self.things['running']}"] if who != "adam" else []
        addresses = [*(page.address for page in pages), *running]
        return [address for address in addresses if self._is_document(who, address)]

    @functools.cache  # noqa: B019  # one site for all tests of this file
    def _is_document(self, who: str, address: str) -> bool:
        headers = self.world.headers(who) | {"Accept": "text/html"}
        with httpx.stream("GET", self.url + address, headers=headers, timeout=30) as answer:
            if not answer.headers.get("content-type", "").startswith("text/html"):
                return False
            return answer.status_code == 200 and b"<html" in answer.read()

    def of(self, who: str, **options: Any) -> Any:
        """Open a window of somebody's."""
        return window_of(self.browser, self.url, self.world, who, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("site")
    engine = open_quickly(f"sqlite:///{folder / 'server.db'}")
    versions.upgrade(engine)
    world = GatewayWorld.open(engine, folder).populate()
    things = furnished(world)
    with served(world) as url, chromium() as browser:
        yield Site(world, things, url, browser)
    engine.dispose()


def violations(page: Any) -> list[str]:
    """Return what axe finds that keeps somebody from reading, or makes it hard."""
    page.evaluate(axe.AXE_SCRIPT)
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{page.url}: {found['id']} ({found['impact']}): {found['help']}: "
        + "; ".join(node["html"][:160] for node in found["nodes"][:3])
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("who", list(ROLE_OF))
def test_axe_finds_nothing_serious(site: Site, who: str) -> None:
    found: list[str] = []
    with site.of(who, reduced_motion="reduce") as seen:
        for address in site.addresses(who):
            seen.page.goto(address)
            for theme in ("light", "dark"):
                seen.page.emulate_media(color_scheme=theme)
                found += [f"{theme} {text}" for text in violations(seen.page)]
    assert not found, "\n".join(found)
    assert seen.problems == []


@pytest.mark.parametrize("who", list(ROLE_OF))
def test_no_page_is_wider_than_its_window(site: Site, who: str) -> None:
    """Also at 200% and on a phone."""
    wide = []
    with site.of(who) as seen:
        for address in site.addresses(who):
            seen.page.goto(address)
            for width, height in SIZES:
                seen.page.set_viewport_size({"width": width, "height": height})
                seen.page.wait_for_timeout(200)  # charts are drawn again
                more = seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                if more > 0:
                    wide.append((address, width, more))
    assert wide == []


@pytest.mark.parametrize("who", list(ROLE_OF))
def test_no_table_is_scrolled_sideways_on_a_phone(site: Site, who: str) -> None:
    """Rows of tables with many columns become cards, whose cells say their column."""
    wide = []
    with site.of(who, reduced_motion="reduce") as seen:
        seen.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
        for address in site.addresses(who):
            seen.page.goto(address)
            wide += [(address, name) for name in seen.page.evaluate(SCROLLED)]
        if who == "paul":
            seen.page.goto("/jobs")
            label = "getComputedStyle(document.querySelector('tbody td'), '::before').content"
            assert seen.page.evaluate(label) == '"State"'
            assert seen.page.get_by_role("columnheader", name="State").count() == 1
            assert seen.page.get_by_role("rowheader").count() > 0
    assert wide == []


def test_times_are_in_the_readers_zone_and_sent_in_utc(site: Site) -> None:
    """Also in fields, whose hour is another one in summer."""
    with site.of("olga", timezone_id="America/New_York") as seen:
        page, address = seen.page, f"/policies/{NAMESPACE}"
        seen.agrees = True
        page.goto(address)
        ends = page.get_by_label("Terms end")
        page.get_by_text("In your time (America/New_York)").first.wait_for()
        ends.fill("2031-07-01T09:30")
        page.locator("form", has=ends).get_by_role("button", name="Preview the effect").click()
        page.get_by_text("From Jul 1, 2031, 9:30").wait_for()
        with page.expect_navigation():
            page.locator("form", has=ends).get_by_role("button", name="Put these terms").click()
        terms = site.world.get(f"policies/{NAMESPACE}", "olga").json()
        assert terms["expires_at"] == "2031-07-01T13:30:00Z"
        page.goto(address)
        assert page.get_by_label("Terms end").input_value() == "2031-07-01T09:30"
    assert seen.problems == []
    with site.of("ann", timezone_id="Asia/Kolkata") as seen:
        seen.page.goto("/audit-log?since=2026-01-01T05:00")
        assert seen.page.get_by_label("From").input_value() == "2026-01-01T10:30"
        seen.page.get_by_role("button", name="Show", exact=True).click()
        seen.page.wait_for_url("**since=2026-01-01T05%3A00**")
    assert seen.problems == []


def test_a_plan_without_room_cannot_be_asked_for(site: Site) -> None:
    with site.of("paul", reduced_motion="reduce") as seen:
        seen.page.goto("/plan?dataset=phee")
        ask = seen.page.get_by_role("button", name="Ask for this fit")
        ask.wait_for()
        assert ask.is_enabled()
        seen.page.fill("#target_epsilon", "20")
        seen.page.get_by_role("heading", name="The budget has no room for this").wait_for()
        seen.page.wait_for_selector('#plan[aria-busy="false"]')
        assert ask.is_disabled()


@pytest.mark.parametrize("who", list(ROLE_OF))
def test_the_keyboard_reaches_everything_in_order(site: Site, who: str) -> None:
    """The way past the menu comes first, then the menu; what has the focus is seen; no trap."""
    with site.of(who) as seen:
        for address in site.addresses(who):
            seen.page.goto(address)
            seen.page.keyboard.press("Tab")
            first = seen.page.evaluate(FOCUSED)
            assert first["skip"], (address, first)
            assert first["shown"], "the way past the menu is seen once it has the focus"
            seen.page.keyboard.press("Tab")
            assert seen.page.evaluate(FOCUSED)["inMenu"], address
            steps, order = 0, -1
            while steps < 400:
                at = seen.page.evaluate(FOCUSED)
                if at["body"] or at["skip"]:
                    break
                assert at["shown"], (address, at)
                assert at["seen"], (address, at)
                assert at["order"] >= order, (address, at)
                order, steps = at["order"], steps + 1
                seen.page.keyboard.press("Tab")
            assert 2 < steps < 400, address
            seen.page.goto(address)
            seen.page.keyboard.press("Tab")
            seen.page.keyboard.press("Enter")
            at = seen.page.evaluate("document.activeElement.id")
            assert at == "main", "the way past the menu leads to the content"


def test_keys_and_the_menu_of_a_phone(site: Site) -> None:
    with site.of("paul") as seen:
        seen.page.goto("/")
        seen.page.keyboard.press("?")
        keys = seen.page.get_by_role("dialog", name="Keys")
        keys.get_by_text("Datasets").wait_for()
        assert violations(seen.page) == []
        seen.page.keyboard.press("Escape")
        assert keys.count() == 0
        seen.page.keyboard.press("g")
        seen.page.keyboard.press("d")
        seen.page.wait_for_url("**/datasets")
        seen.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
        jobs = seen.page.get_by_role("link", name="Jobs", exact=True)
        assert not jobs.is_visible()
        button = seen.page.get_by_role("button", name="Menu")
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        assert violations(seen.page) == []
        jobs.click()
        seen.page.wait_for_url("**/jobs")


@pytest.mark.parametrize("who", list(ROLE_OF))
def test_a_chart_has_its_figures_behind_it(site: Site, who: str) -> None:
    script = """() => [...document.querySelectorAll("[data-chart]")].map((chart) => ({
        points: JSON.parse(chart.dataset.chart).x.values.length,
        rows: chart.parentElement.querySelectorAll("details tbody tr").length,
        drawn: Boolean(chart.querySelector("canvas")), named: chart.getAttribute("aria-label"),
    }))"""
    with site.of(who) as seen:
        for address in site.addresses(who):
            seen.page.goto(address)
            for chart in seen.page.evaluate(script):
                assert chart["drawn"], (address, chart)
                assert chart["named"], address
                assert chart["rows"] == chart["points"] > 0, (address, chart)


def test_nothing_moves_for_who_wants_no_motion(site: Site) -> None:
    script = """() => [...document.getAnimations()].filter(
        (one) => one.effect.getComputedTiming().duration > 1).length"""
    with site.of("paul", reduced_motion="reduce") as seen:
        for address in site.addresses("paul"):
            seen.page.goto(address)
            assert seen.page.evaluate(script) == 0, address


@pytest.mark.parametrize("who", list(ROLE_OF))
def test_nothing_is_kept_and_nothing_comes_from_elsewhere(site: Site, who: str) -> None:
    """After signing in and looking at every page: no secret in an address or the browser's storage,
    no request to another place, and cookies that scripts cannot read."""
    name = f"{who}-signs-in"
    if name not in site.world.users:
        site.world.person(name, ROLE_OF[who], password=PASSWORD)
    with window(site.browser, site.url) as seen:
        sign_in(seen, name)
        for address in site.addresses(who):
            seen.page.goto(address)
        kept = seen.page.evaluate("[{...localStorage}, {...sessionStorage}]")
        cookies = {cookie["name"]: cookie for cookie in seen.page.context.cookies()}
        assert set(cookies) == {"taciturn", "taciturn-csrf"}
        assert cookies["taciturn"]["httpOnly"]
        assert {cookie["sameSite"] for cookie in cookies.values()} == {"Lax"}
        assert all(part in ({}, {"theme": "dark"}, {"theme": "light"}) for part in kept), kept
        secrets = [PASSWORD, *(cookie["value"] for cookie in cookies.values())]
        for text in seen.addresses:
            assert text.startswith((f"{site.url}/", "data:image/")), text
            assert not any(secret in text for secret in secrets), text
        assert not any(secret in seen.page.content() for secret in secrets)
    assert seen.problems == []


def sign_in(seen: Window, name: str, password: str = PASSWORD) -> None:
    seen.page.goto("/sign-in")
    seen.page.get_by_label("Name").fill(name)
    seen.page.get_by_label("Password").fill(password)
    seen.page.get_by_role("button", name="Sign in").click()
    seen.page.wait_for_url(re.compile(r"/$"))


def test_hostile_strings_do_nothing(site: Site) -> None:
    """In a real browser: no dialog, no error, no refusal of the content policy."""
    texts = [text.replace("\x00", "") for text in HOSTILE]
    text = "\n".join(texts)
    change = update(datasets).where(datasets.c.name == DATASET).values(description=text)
    site.world.gateway.write(lambda connection: connection.execute(change))
    for number, one in enumerate(texts[::4]):
        request = {"kind": "fit", "model": one, "name": one, "purpose": one}
        site.world.add_job("fit", state="failed", failure="internal", request=request)
        assert number < 50
    for who in ROLE_OF:
        with site.of(who) as seen:
            for address in site.addresses(who):
                seen.page.goto(address)
                seen.page.wait_for_timeout(50)
            assert seen.problems == [], who
    back = update(datasets).where(datasets.c.name == DATASET).values(description=None)
    site.world.gateway.write(lambda connection: connection.execute(back))


def test_pages_for_everybody_can_be_read(site: Site) -> None:
    with window(site.browser, site.url, reduced_motion="reduce") as seen:
        for page in console_pages(site.world.app, site.things):
            if not page.public:
                continue
            seen.page.goto(page.address)
            for theme in ("light", "dark"):
                seen.page.emulate_media(color_scheme=theme)
                assert violations(seen.page) == []
            for width, height in SIZES:
                seen.page.set_viewport_size({"width": width, "height": height})
                assert seen.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert seen.problems == []


def test_problems_say_what_to_do(site: Site) -> None:
    with window(site.browser, site.url) as seen:
        seen.page.goto("/jobs/job_x")
        assert seen.page.url.endswith("/sign-in?next=/jobs/job_x"), (
            "whoever has no session signs in"
        )
        assert violations(seen.page) == []
    for who, address in (("paul", "/people"), ("paul", "/jobs/job_x"), ("ann", "/jobs?state=none")):
        with site.of(who) as seen:
            seen.page.goto(address)
            assert seen.page.get_by_role("main").get_by_role("link").count() >= 1, address
            assert violations(seen.page) == []


def test_light_and_dark_by_switch(site: Site) -> None:
    with site.of("paul") as seen:
        seen.page.emulate_media(color_scheme="light")
        seen.page.goto("/jobs")
        switch = seen.page.get_by_role("button", name="Dark")
        assert switch.get_attribute("aria-pressed") == "false"
        paper = "getComputedStyle(document.body).backgroundColor"
        light = seen.page.evaluate(paper)
        switch.click()
        assert switch.get_attribute("aria-pressed") == "true"
        assert seen.page.evaluate(paper) != light
        seen.page.goto("/models")
        assert seen.page.evaluate(paper) != light, "the choice is kept"
        assert Role.PRACTITIONER in ROLE_OF.values()
