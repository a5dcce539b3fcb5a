"""The console in a real browser: a practitioner fits, an approver decides, an auditor checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taciturn.demo import gateway as demo
from taciturn.wire.jobs import JobState

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

UNIT = "json_extract_string(context, '$.patient_id')"
TEXT = "json_extract_string(context, '$.text') AS text"
SIZES = ((1440, 900), (390, 844))
PATIENCE_MS = 240_000


@pytest.fixture(scope="module")
def gateway() -> Iterator[demo.DemoGateway]:
    running = demo.start(n_patients=100)
    olivia = running.client("olivia")
    mock = [{"id": "n1", "context": json.dumps({"text": "Mr Mock coughs.", "patient_id": "P1"})}]
    notes = olivia.add_dataset(
        "notes",
        str(running.notes),
        unit=UNIT,
        namespace="patients",
        units=running.units,
        columns=["id", "context"],
        epsilon=10,
        delta=1e-5,
        mock=mock,
    )
    olivia.grant("patients", "user:pia", epsilon=8, delta=1e-5)
    olivia.set_policy("patients", approvers=["user:amir", "user:bea"])
    notes.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system; the tests that need one are skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed (Debian: chromium)")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def person(gateway: demo.DemoGateway, browser: Any) -> Callable[..., Any]:
    """Name -> a page in which that person has signed in; an error of its scripts fails the test."""

    @contextmanager
    def signed_in(name: str, size: tuple[int, int] = SIZES[0]) -> Iterator[Any]:
        context = browser.new_context(
            base_url=gateway.url, viewport={"width": size[0], "height": size[1]}
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        page.goto("/jobs")
        page.fill("input[name=name]", name)
        page.fill("input[name=password]", gateway.password(name))
        page.click("button:has-text('Sign in')")
        page.wait_for_url("**/jobs")
        yield page
        assert problems == []
        context.close()

    return signed_in


def test_a_fit_from_its_plan_to_its_model(person: Callable[..., Any]) -> None:
    with person("pia") as page:
        page.goto("/datasets/notes")
        assert page.get_by_text("Mr Mock coughs.").count() == 1
        page.fill("#select", "upper(id) AS name")
        page.get_by_role("cell", name="N1").wait_for()
        page.click("text=Plan a fit >> nth=1")
        page.fill("input[name=select]", TEXT)
        page.fill("input[name=text_field]", "text")
        page.fill("input[name=steps]", "2")
        page.fill("input[name=batch_size]", "20")
        page.locator("input[name=batch_size]").press("Tab")
        page.get_by_text("This can run").wait_for()
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("text=Ask for this fit")
        page.wait_for_url("**/jobs/job_*")
        page.locator("h1 .badge", has_text="succeeded").wait_for(timeout=PATIENCE_MS)
        page.click("dd a[href^='/models/']")
        assert "DP (epsilon=" in page.inner_text("main")
        page.click("text=Sign out")
        page.wait_for_url("**/sign-in")
    with person("olivia") as page:
        page.goto("/datasets/notes")
        assert page.locator("table", has_text="committed").count() == 1, "spending by job"
    with person("axel") as page:
        page.goto("/ledger")
        page.click("text=Check the chains")
        page.get_by_text("Every chain is in order").wait_for()


def test_two_approve_what_has_no_guarantee(
    gateway: demo.DemoGateway, person: Callable[..., Any]
) -> None:
    data = gateway.client("pia").dataset("notes").select(TEXT)
    job = data.fit(
        "taciturn/tiny-medical",
        text_field="text",
        target_epsilon="unlimited",
        method="lora",
        steps=1,
        batch_size=20,
        purpose="compare with and without privacy",
    )
    for name in ("amir", "bea"):
        with person(name) as page:
            page.goto("/")
            page.click("text=asks for a fit without any guarantee")
            assert "compare with and without privacy" in page.inner_text("main")
            page.fill("input[name=comment]", f"seen by {name}")
            page.click("button:has-text('Approve')")
            page.get_by_text(f"seen by {name}").wait_for()
    assert job.status is not JobState.AWAITING_APPROVAL
    job.cancel()


@pytest.mark.parametrize("size", SIZES)
def test_no_page_is_wider_than_its_window(person: Callable[..., Any], size: Any) -> None:
    with person("pia", size) as page:
        for path in ("/", "/datasets", "/datasets/notes", "/jobs", "/models", "/plan", "/account"):
            page.goto(path)
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, path
