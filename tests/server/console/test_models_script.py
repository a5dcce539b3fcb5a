"""The script of models' pages in a browser, against answers that nobody would wish for.

The browser gets the gateway's own pages, with their own headers; what a worker would say is made
up, so that no model is needed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.console import look
from support.gateway import GatewayWorld

playwright = pytest.importorskip("playwright.sync_api")

HOSTILE = "<img src=x onerror=alert(1)></span><script>alert(2)</script>{{ 7 * 7 }}"
POLICY = {"policy": {"kind": "DP", "text": "DP (epsilon=1)"}}
Answer = Callable[[dict[str, Any]], tuple[int, str]]


@dataclass
class Browsed:
    """A page, and what it has asked the API."""

    page: Any
    model: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    proofs: list[str | None] = field(default_factory=list)

    def says(self, text: str) -> None:
        """Wait until the page's state says this."""
        self.page.locator("#state", has_text=text).wait_for(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system; the tests are skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed (Debian: chromium)")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any, console: GatewayWorld) -> Callable[..., Any]:
    """Name of a page of a model, and what the API answers -> the page; its errors fail the test."""
    model = console.add_model(
        console.add_job("fit", state="succeeded"), owner_id=console.users["paul"]
    )

    @contextmanager
    def opened(name: str, answer: Answer) -> Iterator[Browsed]:
        context = browser.new_context()
        page = context.new_page()
        browsed, problems = Browsed(page, model), list[str]()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append("a dialog was opened"))

        def respond(route: Any) -> None:
            url = urlsplit(route.request.url)
            if url.path.startswith("/openai/"):
                body = json.loads(route.request.post_data)
                browsed.asked.append(body)
                browsed.proofs.append(route.request.headers.get("taciturn-csrf"))
                status, text = answer(body)
                route.fulfill(status=status, body=text)
                return
            found = look(console, "paul", url.path)
            route.fulfill(status=found.status_code, headers=dict(found.headers), body=found.content)

        page.route("**/*", respond)
        cookie = console.services.sessions.csrf_cookie
        context.add_cookies([{"name": cookie, "value": "proof", "url": "http://gateway.test"}])
        page.goto(f"http://gateway.test/models/{model}/{name}")
        yield browsed
        context.close()
        assert not problems

    return opened


def streamed(body: dict[str, Any]) -> tuple[int, str]:
    """An answer in pieces, as the gateway streams it."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"text": piece, "finish_reason": None}], "taciturn": POLICY}
        for piece in (HOSTILE[:20], HOSTILE[20:])
    ]
    chunks.append({"choices": [{"text": "", "finish_reason": "length"}], "taciturn": POLICY})
    chunks.append({"choices": [], "usage": {"completion_tokens": 9}, "taciturn": POLICY})
    data = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return 200, "".join(data) + "data: [DONE]\n\n"


def test_what_a_model_writes_is_text(open_page: Callable[..., Any]) -> None:
    with open_page("playground", streamed) as browsed:
        page = browsed.page
        page.fill("[name=prompt]", HOSTILE)
        page.fill("[name=samples]", "2")
        page.fill("[name=seed]", "5")
        page.click("[data-start]")
        browsed.says("Done.")
        assert page.locator("#answers .said").first.inner_text() == HOSTILE * 2
        assert page.locator("#answers img, #answers script").count() == 0
        note = page.locator("#answers .answer").nth(1).inner_text()
        assert "9 tokens, cut at the longest answer" in note
        assert "DP (epsilon=1)" in note
        assert [body["seed"] for body in browsed.asked] == [5, 6]
        assert all(body["stream"] and body["prompt"] == HOSTILE for body in browsed.asked)
        assert browsed.proofs == ["proof", "proof"]
        assert "proof" not in page.url


@pytest.mark.parametrize(
    ("status", "message", "text"),
    [
        (503, "nothing <b>came</b>", "No worker could answer: nothing <b>came</b>"),
        (400, "too long", "Refused: too long"),
        (401, "", "Your session has ended"),
        (404, "", "no longer there"),
        (429, "", "Too many requests"),
    ],
)
def test_a_refusal_is_said_in_words(
    open_page: Callable[..., Any], status: int, message: str, text: str
) -> None:
    body = json.dumps({"error": {"message": message}})
    with open_page("playground", lambda _: (status, body)) as browsed:
        browsed.page.click("[data-start]")
        browsed.says(text)
        assert browsed.page.locator("#state b").count() == 0
        assert browsed.page.locator("[data-start]").is_enabled()


def test_an_answer_that_breaks_off_is_said(open_page: Callable[..., Any]) -> None:
    with open_page("playground", lambda body: (200, streamed(body)[1][:60])) as browsed:
        browsed.page.click("[data-start]")
        browsed.says("broke off")


def compared(body: dict[str, Any]) -> tuple[int, str]:
    """Completions of which the base holds one token for unlikely and one for likelier."""
    is_base = body["model"].endswith(":base")
    choices = []
    for prompt in body["prompt"]:
        # A prompt of a character outside of the basic plane is of two units of a browser's text.
        answered = prompt if body["max_tokens"] == 0 else f"{prompt} {HOSTILE} b c"
        first = answered.index(f" {HOSTILE}")
        texts = [answered[:first], f" {HOSTILE}", " b", " c"]
        offsets = [0, first, first + len(texts[1]), first + len(texts[1]) + 2]
        values = [None, -9.0, -1.0, -2.0] if is_base else [None, -1.0, -3.0, -2.01]
        logprobs = {"tokens": texts, "text_offset": offsets, "token_logprobs": values}
        choices.append({"text": answered, "logprobs": logprobs})
    return 200, json.dumps({"choices": choices})


def test_tokens_are_coloured_by_what_the_reference_held(open_page: Callable[..., Any]) -> None:
    with open_page("comparison", compared) as browsed:
        page = browsed.page
        page.fill("[name=prompts]", "\U0001f600 A\nB")
        page.click("[data-start]")
        browsed.says("Done.")
        cards = page.locator("#answers .answer")
        assert cards.count() == 4, "two prompts, base and model"
        base, fitted = cards.nth(0).locator(".token"), cards.nth(1).locator(".token")
        assert [base.nth(index).get_attribute("class") for index in range(3)] == ["token"] * 3
        classes = [fitted.nth(index).get_attribute("class") for index in range(3)]
        assert classes == ["token up3", "token down2", "token"]
        assert fitted.nth(0).inner_text().strip() == HOSTILE
        assert page.locator("#answers img, #answers script").count() == 0
        page.mouse.move(0, 0)  # a token that scrolls below the pointer would speak instead
        fitted.nth(0).focus()
        assert "37% here, 0.012% under the reference" in page.locator("#figures").inner_text()
        page.keyboard.press("ArrowRight")
        assert "less likely" in page.locator("#figures").inner_text()
        cards.nth(1).locator("summary").click()
        rows = cards.nth(1).locator("tbody tr")
        assert rows.count() == 3
        assert rows.nth(0).locator("td").all_inner_texts() == ["-1.00", "-9.00", "8.00"]
        scored = [body for body in browsed.asked if body["max_tokens"] == 0]
        assert [body["model"] for body in scored] == [f"{browsed.model}:base"]
        assert all(body["echo"] and body["logprobs"] == 0 for body in browsed.asked)


def test_a_model_that_fails_leaves_the_others(open_page: Callable[..., Any]) -> None:
    def half(body: dict[str, Any]) -> tuple[int, str]:
        if body["model"].endswith(":base"):
            return compared(body)
        return 503, json.dumps({"error": {"message": "it is full"}})

    with open_page("comparison", half) as browsed:
        browsed.page.click("[data-start]")
        browsed.says("1 of 2 models answered")
        assert "it is full" in browsed.page.locator("#answers .answer").nth(1).inner_text()
