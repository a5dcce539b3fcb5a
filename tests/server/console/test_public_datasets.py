"""Pages about public data: listed and marked as such, declared, named in plans and on jobs."""

from __future__ import annotations

import html
import re

import pytest
from httpx import Response

from support.console import look, send
from support.gateway import MODEL, GatewayWorld, fit

CASES = {
    "name": "cases",
    "source": "s3://open/cases.jsonl",
    "licence": "CC BY 4.0",
    "origin": "case reports of an open journal",
}
BADGE = '<span class="badge">public</span>'


def words(answer: Response) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text)))


@pytest.fixture
def cases(console: GatewayWorld) -> GatewayWorld:
    answer = send(console, "olga", "/public-datasets", **CASES)
    assert answer.headers["hx-redirect"] == "/public-datasets/cases"
    return console


def test_lists_mark_it_as_public(cases: GatewayWorld) -> None:
    for who in ("olga", "paul", "ann", "adam"):
        page = look(cases, who, "/public-datasets")
        assert BADGE in page.text
        assert "case reports of an open journal" in page.text
        assert ("Declare it public" in page.text) is (who in ("olga", "adam"))
    page = look(cases, "paul", "/datasets")
    assert BADGE in page.text
    assert '<a href="/public-datasets/cases">cases</a>' in page.text


def test_its_page_says_what_was_declared(cases: GatewayWorld) -> None:
    page = look(cases, "paul", "/public-datasets/cases")
    assert "no protected unit, no budget" in page.text
    assert "s3://open" not in page.text
    assert "Remove it" not in page.text
    assert 'href="/plan?public_data=cases"' in page.text
    assert "s3://open/cases.jsonl" in look(cases, "olga", "/public-datasets/cases").text
    assert send(cases, "paul", "/public-datasets/cases/removals").status_code == 403
    answer = send(cases, "adam", "/public-datasets/cases/removals")
    assert answer.headers["hx-redirect"] == "/public-datasets"
    assert "removed" in look(cases, "paul", "/public-datasets/cases").text
    assert "Nothing is declared public yet" in look(cases, "paul", "/public-datasets").text


def test_what_is_left_out_is_said(console: GatewayWorld) -> None:
    answer = send(console, "olga", "/public-datasets", **{**CASES, "name": "not a name"})
    assert answer.status_code == 422
    assert "name" in answer.text


def test_the_plan_offers_and_shows_it(cases: GatewayWorld) -> None:
    form = look(cases, "paul", "/plan?dataset=phee&public_data=cases").text
    assert '<option value="cases" selected>cases (public, CC BY 4.0)</option>' in form
    fields = {"dataset": "phee", "model": MODEL, "text_field": "context", "target_epsilon": "1"}
    planned = words(send(cases, "paul", "/plan", **fields, public_data="cases"))
    assert "It first learns from the public data set cases public , which the guarantee" in planned
    wrong = send(cases, "paul", "/plan", **fields, public_data="phee")
    assert wrong.headers["hx-retarget"] == "#error-public_data"
    asked = send(cases, "paul", "/jobs", **fields, public_data="cases")
    job = asked.headers["hx-redirect"].rpartition("/")[2]
    page = look(cases, "paul", f"/jobs/{job}").text
    assert f'<a href="/public-datasets/cases">cases</a> {BADGE}' in page
    again = look(cases, "paul", f"/plan?like={job}").text
    assert '<option value="cases" selected>' in again


def test_the_form_has_no_choice_where_nothing_is_public(console: GatewayWorld) -> None:
    assert 'name="public_data"' not in look(console, "paul", "/plan?dataset=phee").text


def test_approvers_see_it(cases: GatewayWorld) -> None:
    body = fit(target_epsilon="unlimited", public_data="cases")
    approval = cases.submit(body).json()["approval"]
    page = words(look(cases, "olga", f"/approvals/{approval}"))
    assert "cases public , learned first and not covered by any guarantee (CC BY 4.0" in page
    assert "declared by olga" in page
