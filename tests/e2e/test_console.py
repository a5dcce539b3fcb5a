"""The console in a real browser: from a file of notes to a model, and to what its owner sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.browser import chromium, window
from taciturn.demo import gateway as demo

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

UNIT = "json_extract_string(context, '$.patient_id')"
TEXT = "json_extract_string(context, '$.text') AS text"
PATIENCE_MS = 180_000


@pytest.fixture(scope="module")
def gateway() -> Iterator[demo.DemoGateway]:
    """A gateway with people, a file of notes and no dataset."""
    running = demo.start(n_patients=100)
    yield running
    running.stop()


@pytest.fixture
def person(gateway: demo.DemoGateway) -> Iterator[Callable[..., Any]]:
    """Name -> a page in which that person has signed in; an error of its scripts fails the test.
    Questions before destructive acts are answered with yes."""
    with chromium() as browser:

        @contextmanager
        def signed_in(name: str) -> Iterator[Any]:
            with window(browser, gateway.url) as seen:
                page, seen.agrees = seen.page, True
                page.goto("/jobs")
                page.get_by_label("Name").fill(name)
                page.get_by_label("Password").fill(gateway.password(name))
                page.get_by_role("button", name="Sign in").click()
                page.wait_for_url("**/jobs")
                yield page
                page.get_by_role("button", name="Sign out").click()
                page.wait_for_url("**/sign-in")
                assert seen.problems == []

        yield signed_in


def test_from_a_file_to_a_model_and_back_to_its_owner(
    gateway: demo.DemoGateway, person: Callable[..., Any]
) -> None:
    """The whole of it, by people with a browser, in the order in which it happens."""
    with person("olivia") as page:
        _register(page, gateway)
        _give_terms(page)
    with person("pia") as page:
        _fit(page)
        _verify_and_ask(page)
        _ask_without_guarantee(page)
    for name in ("amir", "bea"):
        with person(name) as page:
            _approve(page, name)
    with person("olivia") as page:
        page.goto("/datasets/notes/spending")
        page.get_by_role("cell", name="pia").first.wait_for()
        page.get_by_role("heading", name="All that was spent, together").wait_for()
        page.goto("/datasets/notes/disclosures")
        page.get_by_text("Fitted model").first.wait_for()
    with person("axel") as page:
        page.goto("/ledger")
        page.click("button:has-text('Check all chains')")
        page.get_by_text("Every chain is in order").wait_for()
        page.goto("/audit-log?actor=user:pia")
        assert page.get_by_role("cell", name="/jobs", exact=True).count() > 0


def _register(page: Any, gateway: demo.DemoGateway) -> None:
    """Register the notes; a worker finds their columns, and their owner confirms them."""
    page.goto("/register")
    page.fill("input[name=name]", "notes")
    page.fill("input[name=source]", str(gateway.notes))
    page.fill("input[name=unit]", UNIT)
    page.fill("input[name=units]", str(gateway.units))
    page.fill("input[name=namespace]", "patients")
    page.locator("input[name=namespace]").press("Tab")
    page.fill("input[name=epsilon]", "10")
    page.fill("input[name=delta]", "1e-5")
    mock = {"id": "n1", "context": json.dumps({"text": "Mr Mock coughs.", "patient_id": "P1"})}
    page.fill("textarea[name=mock]", json.dumps(mock))
    page.click("button:has-text('Register')")
    page.wait_for_url("**/datasets/notes")
    page.click("button:has-text('They are names')", timeout=PATIENCE_MS)
    page.locator("h1 .badge", has_text="ready").wait_for(timeout=PATIENCE_MS)


def _give_terms(page: Any) -> None:
    """Say who may approve exceptions, and let pia spend."""
    page.goto("/policies/patients")
    page.fill("textarea[name=approvers]", "user:amir\nuser:bea")
    with page.expect_navigation():
        page.locator("form:has(textarea[name=approvers]) button:not(.quiet)").last.click()
    assert "user:bea" in page.input_value("textarea[name=approvers]")
    grant = page.locator("form:has(input[name=holder])")
    grant.locator("input[name=holder]").fill("user:pia")
    grant.locator("input[name=epsilon]").fill("8")
    grant.locator("input[name=delta]").fill("1e-5")
    with page.expect_navigation():
        grant.locator("button:not(.quiet)").last.click()
    page.get_by_role("rowheader", name="pia").wait_for()


def _plan(page: Any) -> None:
    """Fill the form of a plan for two steps of twenty units."""
    page.goto("/plan?dataset=notes")
    page.click("summary:has-text('Prepare the text by SQL')")
    page.fill("textarea[name=select]", TEXT)
    page.fill("input[name=text_field]", "text")
    page.fill("input[name=steps]", "2")
    page.fill("input[name=batch_size]", "20")
    page.locator("input[name=batch_size]").press("Tab")


def _fit(page: Any) -> None:
    """Look at the data, plan, ask, and watch until there is a model."""
    page.goto("/datasets/notes")
    assert page.get_by_text("Mr Mock coughs.").count() == 1
    page.fill("#select", "upper(id) AS name")
    page.get_by_role("cell", name="N1").wait_for()
    _plan(page)
    page.get_by_role("heading", name="This can run").wait_for()
    page.click("button:has-text('Ask for this fit')")
    page.wait_for_url("**/jobs/job_*")
    page.locator("h1 .badge", has_text="succeeded").wait_for(timeout=PATIENCE_MS)
    page.click("text=Open the model")
    page.wait_for_url("**/models/*")
    assert "DP" in page.inner_text("h1")


def _verify_and_ask(page: Any) -> None:
    """Verify the certificate, and have the model write."""
    address = page.url
    page.click("button:has-text('Verify')")
    page.get_by_text("Verified: the certificate holds").wait_for(timeout=PATIENCE_MS)
    page.goto(f"{address}/playground")
    page.fill("textarea[name=prompt]", "The patient was admitted with")
    page.fill("input[name=max_tokens]", "8")
    page.click("button:has-text('Write')")
    page.locator("#answers .said").first.wait_for(timeout=PATIENCE_MS)
    page.locator("[data-stop]:disabled").wait_for(timeout=PATIENCE_MS)
    assert "The patient was admitted with" in page.inner_text("#answers")


def _ask_without_guarantee(page: Any) -> None:
    _plan(page)
    page.check("input[name=guarantee][value=none]")
    page.click("summary:has-text('Name and purpose')")
    page.fill("input[name=purpose]", "compare with and without privacy")
    page.locator("input[name=purpose]").press("Tab")
    page.locator("#plan:not(.stale) >> text=two people").first.wait_for()
    page.click("button:has-text('Ask for this fit')")
    page.wait_for_url("**/jobs/job_*")


def _approve(page: Any, name: str) -> None:
    page.goto("/")
    page.click("text=asks for a fit without any guarantee")
    assert "compare with and without privacy" in page.inner_text("main")
    page.fill("input[name=comment]", f"seen by {name}")
    page.click("button:has-text('Approve')")
    page.get_by_text(f"seen by {name}").wait_for()
