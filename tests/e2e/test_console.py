"""The whole journey in a real browser, by what people see: labels, buttons, headings.

An owner registers data and gives a grant, a practitioner plans, fits, watches, samples, verifies,
two people approve a fit without guarantee, the owner sees the spend, an auditor checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.browser import chromium, window
from taciturn.demo import gateway as demo

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

UNIT = "json_extract_string(context, '$.patient_id')"
TEXT = "json_extract_string(context, '$.text') AS text"
MOCK = {"id": "n1", "context": json.dumps({"text": "Mr Mock coughs.", "patient_id": "P1"})}
PURPOSE = "compare with and without privacy"
PATIENCE_MS = 300_000
"""A worker loads torch, on a machine that may be busy."""

Person = Callable[[str], Any]


@pytest.fixture(scope="module")
def gateway() -> Iterator[demo.DemoGateway]:
    running = demo.start(n_patients=100)
    yield running
    running.stop()


@pytest.fixture
def person(gateway: demo.DemoGateway) -> Iterator[Person]:
    """Name -> a page in which that person has signed in; what goes wrong there fails the test.
    Questions before destructive acts are answered with yes."""
    with chromium() as browser:

        @contextmanager
        def signed_in(name: str) -> Iterator[Any]:
            with window(browser, gateway.url) as seen:
                page, seen.agrees = seen.page, True
                page.goto("/sign-in")
                page.get_by_label("Name").fill(name)
                page.get_by_label("Password").fill(gateway.password(name))
                page.get_by_role("button", name="Sign in").click()
                page.wait_for_url(re.compile(r"/$"))
                yield page
                page.get_by_role("button", name="Sign out").click()
                page.wait_for_url("**/sign-in")
                assert seen.problems == []

        yield signed_in


def test_the_journey(gateway: demo.DemoGateway, person: Person) -> None:
    with person("olivia") as page:
        registers(page, gateway)
        sets_terms(page)
    with person("pia") as page:
        tries_a_selection(page)
        job = fits(page, epsilon="3")
        watches(page)
        model = samples(page)
        verifies(page, model)
        exception = fits(page, epsilon=None)
        page.get_by_role("heading", name="Two people have to approve it").wait_for()
    for name in ("amir", "bea"):
        with person(name) as page:
            approves(page, name)
    with person("pia") as page:
        page.goto(exception)
        page.get_by_role("link", name="Who approved it").wait_for()
        page.get_by_role("button", name="Cancel the job").click()
        page.locator("h1 .badge", has_text="cancelled").wait_for()
    with person("olivia") as page:
        page.goto("/datasets/notes")
        page.get_by_role("link", name="Spending", exact=True).click()
        line = page.get_by_role("row").filter(has_text=job.rpartition("/")[2])
        assert line.get_by_text("done").count() == 1
        assert line.get_by_text("pia", exact=True).count() == 1
        page.get_by_role("link", name="What has left").click()
        page.get_by_text("pia").first.wait_for()
    with person("axel") as page:
        checks(page)


def registers(page: Any, gateway: demo.DemoGateway) -> None:
    page.goto("/datasets")
    page.get_by_role("link", name="Register a dataset").first.click()
    page.get_by_label("Name", exact=False).first.fill("notes")
    page.get_by_label("Description").fill("Notes of a ward, invented")
    page.get_by_label("Where the rows are").fill(str(gateway.notes))
    page.get_by_label("What makes a unit").fill(UNIT)
    page.get_by_label("How many units there are").fill(str(gateway.units))
    page.get_by_label("Namespace").press_sequentially("patients")
    page.get_by_label("Epsilon of the whole budget").fill("10")
    page.get_by_label("Delta of the whole budget").fill("1e-5")
    page.get_by_label("Invented rows for the preview").fill(json.dumps(MOCK))
    page.get_by_role("button", name="Register").click()
    page.wait_for_url("**/datasets/notes")
    confirm = page.get_by_role("button", name="They are names")
    confirm.wait_for(timeout=PATIENCE_MS)
    assert page.get_by_role("row").filter(has_text="context").count() >= 1
    confirm.click()
    page.locator("h1 .badge", has_text="ready").wait_for()


def sets_terms(page: Any) -> None:
    page.get_by_role("link", name="Policy and grants").click()
    grant = page.get_by_role("region", name="Give a grant")
    grant.get_by_label("Holder").fill("user:pia")
    grant.get_by_label("Epsilon").fill("8")
    grant.get_by_role("button", name="Give it").click()
    page.get_by_role("heading", name="Who may spend").wait_for()
    terms = page.get_by_role("region", name="Terms")
    terms.get_by_label("Who may approve exceptions").fill("user:amir\nuser:bea")
    terms.get_by_role("button", name="Put in force").click()
    page.wait_for_load_state()
    page.get_by_text("user:pia").first.wait_for()


def tries_a_selection(page: Any) -> None:
    page.goto("/datasets/notes")
    assert page.get_by_text("Mr Mock coughs.").count() == 1
    page.get_by_label("Try a selection").fill("upper(id) AS name")
    page.get_by_role("cell", name="N1").wait_for()
    page.get_by_label("Try a selection").fill("count(*) AS n")
    page.get_by_role("alert").first.wait_for()


def fits(page: Any, epsilon: str | None) -> str:
    """Plan a fit and ask for it; returns its page."""
    page.goto("/plan?dataset=notes")
    page.get_by_text("Prepare the text by SQL").click()
    page.get_by_label("Selection").fill(TEXT)
    page.get_by_label("Column with the text").fill("text")
    page.get_by_label("Length", exact=False).first.fill("2")
    page.locator("#batch_size").fill("20")
    page.get_by_text("Name and purpose").click()
    page.get_by_label("Purpose").fill(PURPOSE)
    if epsilon is None:
        page.get_by_label("No guarantee").check()
        page.get_by_text("Every step uses the units as they are", exact=False).wait_for()
    else:
        page.locator("#target_epsilon").fill(epsilon)
        page.get_by_text("Share of your grant").wait_for()
    page.wait_for_timeout(1000)  # the last plan is of all that was written
    page.get_by_role("button", name="Ask for this fit").click()
    page.wait_for_url("**/jobs/job_*")
    return str(page.url)


def watches(page: Any) -> None:
    page.get_by_role("region", name="Stages").wait_for()
    page.locator("h1 .badge", has_text="succeeded").wait_for(timeout=PATIENCE_MS)
    assert "2" in page.locator("[data-figure=steps]").inner_text()
    page.get_by_text("Figures of this chart").click()
    assert page.get_by_role("region", name="Epsilon over the steps").get_by_role("row").count() > 1


def samples(page: Any) -> str:
    """Try the model; returns its page."""
    page.get_by_role("link", name="Open the model").click()
    page.wait_for_url(re.compile(r"/models/[a-z]+_[0-9a-z]+$"))
    model = str(page.url)
    page.get_by_role("heading", name="What it promises").wait_for()
    page.goto(f"{model}/playground")
    page.get_by_label("Longest answer").fill("8")
    page.get_by_role("button", name="Write").click()
    page.wait_for_function(
        "() => document.querySelector('#answers').innerText.trim().length > 20", timeout=PATIENCE_MS
    )
    return model


def verifies(page: Any, model: str) -> None:
    page.goto(model)
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("Verified: the certificate holds").wait_for(timeout=PATIENCE_MS)


def approves(page: Any, name: str) -> None:
    page.goto("/approvals")
    page.get_by_role("main").locator("a[href^='/approvals/']").first.click()
    assert PURPOSE in page.get_by_role("main").inner_text()
    assert page.get_by_text("The model may repeat private text").count() == 1
    page.get_by_label("Comment").fill(f"seen by {name}")
    page.get_by_role("button", name="Approve").click()
    page.get_by_text(f"seen by {name}").wait_for()


def checks(page: Any) -> None:
    page.goto("/ledger")
    page.get_by_role("button", name="Check all chains").click()
    page.get_by_text(re.compile("in order")).first.wait_for()
    page.get_by_role("link", name="patients").click()
    page.get_by_role("main").get_by_text("user:pia").first.wait_for()
    page.goto("/audit-log")
    assert page.get_by_role("row").filter(has_text="user:pia").count() >= 1
