"""Pages of the console: for whom, what they show and never show, and forms that do their work."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib

import pytest
from httpx import Response

from support.console import look, send
from support.gateway import PASSWORD, GatewayWorld, fit
from taciturn.server.console.rendering import (
    FOLDER,
    MENU,
    holder,
    power_of_ten,
    promise,
    rounded_down,
    rounded_up,
    sentence,
    static_files,
    static_url,
)
from taciturn.server.identity.permissions import PERMISSIONS
from taciturn.wire.identity import Role

PAGES = [entry.path for entry in MENU] + [
    "/account",
    "/datasets/phee",
    "/plan/columns?dataset=phee",
]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</textarea><script>alert(1)</script>",
    "javascript:alert(1)//",
    "{{ 7 * 7 }}${7*7}<%= 7*7 %>",
    "<a hx-get='/account' hx-trigger='load'>",
    "\u202eevil<b>",
)
HTML = {"Accept": "text/html,*/*"}


@pytest.mark.parametrize("who", ["olga", "paul", "ann", "adam"])
def test_a_page_is_there_for_who_may_see_it(console: GatewayWorld, who: str) -> None:
    role = {"olga": Role.OWNER, "paul": Role.PRACTITIONER, "ann": Role.AUDITOR, "adam": Role.ADMIN}
    for entry in MENU:
        answer = look(console, who, entry.path)
        allowed = role[who] in PERMISSIONS[entry.action]
        assert answer.status_code == (200 if allowed else 403), entry.path
        shown = f'<a href="{entry.path}"' in look(console, who, "/").text
        assert shown == allowed, "the menu names what may be seen"


def test_a_page_loads_from_here_alone_and_is_kept_nowhere(console: GatewayWorld) -> None:
    for path in PAGES:
        who = "adam" if look(console, "olga", path).status_code == 403 else "olga"
        who = "ann" if look(console, who, path).status_code == 403 else who
        answer = look(console, who, path)
        assert answer.status_code == 200, path
        assert answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|hx-on", answer.text)
        for address in re.findall(r'(?:src|href)="([^"]*)"', answer.text):
            assert address.startswith(("/", "#", "?")), address


def test_who_is_not_signed_in_is_asked_to(console: GatewayWorld) -> None:
    answer = console.client.get("/datasets/phee", headers=HTML, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=/datasets/phee"
    fragment = console.client.get(
        "/jobs/x/progress", headers=HTML | {"HX-Request": "true"}, follow_redirects=False
    )
    assert fragment.headers["hx-redirect"] == "/sign-in?next=/jobs/x/progress"
    assert "Sign in" in console.client.get("/sign-in").text


def test_whoever_signs_in_anew_comes_back_to_the_page_that_they_saw(console: GatewayWorld) -> None:
    console.client.cookies.set("taciturn", "tac_ended")
    answer = console.client.get("/jobs?state=failed", headers=HTML, follow_redirects=False)
    place = "/sign-in?next=/jobs%3Fstate%3Dfailed&ended=1"
    assert answer.headers["location"] == place
    assert "Your session has ended" in console.client.get(place).text
    seen_at = {"HX-Request": "true", "HX-Current-URL": "https://testserver/jobs/x"}
    part = console.client.get("/jobs/x/progress", headers=HTML | seen_at, follow_redirects=False)
    assert part.headers["hx-redirect"] == "/sign-in?next=/jobs/x&ended=1"


def test_an_address_with_nothing_at_it_is_a_page_for_browsers_alone(console: GatewayWorld) -> None:
    answer = console.client.get("/no/such/page", headers=HTML)
    assert answer.status_code == 404
    assert "There is nothing at this address." in answer.text
    assert 'href="/"' in answer.text
    for path, headers in (("/no/such/page", {}), ("/v1/none", HTML)):
        program = console.client.get(path, headers=headers)
        assert program.headers["content-type"] == "application/problem+json"


def test_a_page_that_fails_says_so_without_the_reason(
    console: GatewayWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a row of Mr Doe's")

    monkeypatch.setattr(type(console.services.models), "list", broken)
    answer = look(console, "paul", "/models", **HTML)
    assert answer.status_code == 500
    assert "Doe" not in answer.text
    incident = re.findall(r"inc_[0-9a-z]{20}", answer.text)[0]
    assert any(getattr(line, "incident", None) == incident for line in caplog.records)
    part = look(console, "paul", "/models", **{"HX-Request": "true"})
    assert part.headers["hx-retarget"] == "#notice"


def test_answers_are_compressed_for_who_reads_that(console: GatewayWorld) -> None:
    for path in ("/jobs", static_url("vendor/htmx.min.js")):
        plain = look(console, "paul", path, **{"Accept-Encoding": "identity"})
        packed = look(console, "paul", path, **{"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert "Accept-Encoding" in packed.headers["vary"]
        assert packed.content == plain.content
        assert int(packed.headers["content-length"]) < len(plain.content) / 1.8


def sign_in(world: GatewayWorld, password: str = PASSWORD, path: str = "/jobs") -> Response:
    fields = {"name": "pia", "password": password, "next": path}
    return world.client.post("/sign-in", data=fields, follow_redirects=False)


def test_signing_in_opens_what_was_asked_for(console: GatewayWorld) -> None:
    console.person("pia", Role.PRACTITIONER, password=PASSWORD)
    wrong = sign_in(console, "not this one")
    assert wrong.status_code == 401
    assert "taciturn" not in console.client.cookies
    answer = sign_in(console)
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
    assert console.client.get("/jobs").status_code == 200
    # A write needs the proof that a page of this gateway alone can read.
    assert console.client.post("/sign-out").status_code == 403
    proof = console.client.cookies["taciturn-csrf"]
    answer = console.client.post("/sign-out", headers={"Taciturn-CSRF": proof})
    assert answer.headers["hx-redirect"] == "/sign-in"
    assert console.client.get("/jobs").status_code == 401


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil", "/a\nb", ""])
def test_nobody_is_sent_elsewhere(console: GatewayWorld, path: str) -> None:
    console.person("pia", Role.PRACTITIONER, password=PASSWORD)
    assert sign_in(console, path=path).headers["location"] == "/"


def test_another_site_cannot_sign_anybody_in(console: GatewayWorld) -> None:
    answer = console.client.post("/sign-in", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize("text", HOSTILE)
def test_what_people_write_is_text(console: GatewayWorld, text: str) -> None:
    mock = [{"id": text, "context": text}]
    change = {"description": text, "mock": mock}
    console.set_terms(approvers=["user:otto", "group:board"])
    console.ask("olga", "PATCH", "/datasets/phee", change)
    job = console.submit(fit(purpose=text, target_epsilon="unlimited", name=text)).json()
    paths = ["/datasets/phee", "/jobs", f"/jobs/{job['id']}", f"/approvals/{job['approval']}", "/"]
    for path in (*paths, "/approvals", "/datasets"):
        answer = look(console, "olga", path)
        assert answer.status_code == 200, path
        assert text not in answer.text or "<" not in text
    answer = send(console, "paul", "/datasets/phee/selections", select=f'"{text}" AS x')
    assert text not in answer.text or "<" not in text


def test_a_selection_is_tried_and_refused_in_words(console: GatewayWorld) -> None:
    answer = send(console, "paul", "/datasets/phee/selections", select="count(*) AS n")
    assert answer.status_code == 422
    assert answer.headers["hx-retarget"] == "#refusal"
    assert 'role="alert"' in answer.text


def test_a_fit_is_planned_and_asked_for(console: GatewayWorld) -> None:
    fields = {"dataset": "phee", "model": "taciturn/tiny-medical", "text_field": "context"}
    answer = send(console, "paul", "/plan", **fields, target_epsilon="1", steps="20")
    assert answer.status_code == 200, answer.text
    assert "This can run" in answer.text
    assert "Share of your grant" in answer.text
    before = console.entries()
    assert send(console, "paul", "/plan", **fields, target_epsilon="0").status_code == 422
    assert console.entries() == before
    answer = send(console, "paul", "/jobs", **fields, target_epsilon="1", steps="20", name="notes")
    path = answer.headers["hx-redirect"]
    page = look(console, "paul", path)
    assert "Waits for a worker" in page.text
    assert send(console, "petra", f"{path}/cancellations").status_code == 404
    assert send(console, "paul", f"{path}/cancellations").headers["hx-redirect"] == path
    assert "cancelled" in look(console, "paul", path).text
    assert look(console, "paul", f"{path}/progress").headers["hx-refresh"] == "true"


def test_two_people_approve_a_fit_without_guarantee(console: GatewayWorld) -> None:
    console.set_terms(approvers=["user:otto", "group:board"])
    job = console.submit(fit(target_epsilon="unlimited", purpose="compare")).json()
    path = f"/approvals/{job['approval']}"
    assert "paul asks for a fit without any guarantee" in look(console, "otto", "/").text
    page = look(console, "otto", path).text
    assert "The model may repeat private text" in page
    assert 'value="approve"' in page
    assert 'value="approve"' not in look(console, "paul", path).text
    assert send(console, "paul", f"{path}/decisions", decision="approve").status_code == 403
    for who in ("otto", "bea"):
        answer = send(console, who, f"{path}/decisions", decision="approve", comment="go on")
        assert answer.headers["hx-redirect"] == path
    assert "go on" in look(console, "otto", path).text
    assert console.job_state(job["id"]) == "queued"


def test_an_approval_is_taken_back_until_it_is_used(console: GatewayWorld) -> None:
    console.set_terms(approvers=["user:otto", "group:board"])
    job = console.submit(fit(target_epsilon="unlimited")).json()
    path = f"/approvals/{job['approval']}"
    send(console, "otto", f"{path}/decisions", decision="approve")
    assert send(console, "otto", f"{path}/withdrawals").headers["hx-redirect"] == path
    assert "took the approval back" in look(console, "otto", path).text


def test_a_token_is_shown_once(console: GatewayWorld) -> None:
    answer = send(console, "paul", "/account/tokens", name="laptop", scope=["jobs:read"])
    token = re.findall(r"tac_[0-9a-z]{20}_[\w-]+", answer.text)[0]
    assert console.client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    page = look(console, "paul", "/account").text
    assert "laptop" in page
    assert token not in page
    made = [item for item in console.get("tokens").json()["items"] if item["name"] == "laptop"]
    send(console, "paul", f"/account/tokens/{made[0]['id']}/revocations")
    gone = console.client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert gone.status_code == 401


def test_auditors_check_the_chains(console: GatewayWorld) -> None:
    assert "Every chain is in order" in send(console, "ann", "/ledger/verifications").text
    page = look(console, "ann", "/audit-log").text
    assert "ledger:read" in page


def test_files_are_kept_by_browsers_and_change_their_address(console: GatewayWorld) -> None:
    for name, (digest, content) in static_files().items():
        answer = console.client.get(static_url(name))
        assert answer.content == content
        assert "immutable" in answer.headers["cache-control"]
        assert console.client.get(f"/static/{digest[::-1]}/{name}").status_code == 404
    assert console.client.get("/static/x/../rendering.py").status_code == 404


def test_a_page_is_small(console: GatewayWorld) -> None:
    for path in PAGES[:8]:
        assert len(look(console, "olga", path).content) < 100_000


def test_files_of_other_projects_are_as_they_were_published() -> None:
    vendor = FOLDER / "static" / "vendor"
    sources = tomllib.loads((vendor / "SOURCES.toml").read_text(encoding="utf-8"))
    scripts = {path.name for path in vendor.iterdir() if path.suffix in (".js", ".css")}
    assert scripts == set(sources)
    for name, source in sources.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == source["sha256"]
        assert (vendor / f"{name.split('.')[0]}.LICENSE").is_file()


def test_epsilons_err_on_the_safe_side() -> None:
    assert [rounded_up(value) for value in (0, 3, 2.99868, 2.991, 0.012341)] == [
        *("0", "3", "3", "3", "0.0124"),
    ]
    assert [rounded_down(value) for value in (0, 3, 2.99868, 0.012349)] == [
        "0",
        "3",
        "2.99",
        "0.0123",
    ]
    assert power_of_ten(1e-5) == "10<sup>-5</sup>"
    assert json.dumps(power_of_ten(2.5e-7)) == '"2.5 \\u00d7 10<sup>-7</sup>"'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing is left", "Nothing is left."),
        ("name: too long", "name: too long."),
        ("run `taciturn user list`", "Run <code>taciturn user list</code>."),
        ("run `taciturn <b>`", "Run <code>taciturn &lt;b&gt;</code>."),
        ("no `<b>` here", "No `&lt;b&gt;` here."),
        ("one ` alone & <i>", "One ` alone &amp; &lt;i&gt;."),
    ],
)
def test_a_problem_is_a_sentence_in_which_nothing_is_markup_but_code(text: str, shown: str) -> None:
    assert str(sentence(text)) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "DP (epsilon=2.998, delta=1e-05, unit=patient_id)",
            "epsilon 3 at delta 10<sup>-5</sup>, for each value of <code>patient_id</code>",
        ),
        (
            "DP (budget epsilon=10, delta=1e-06, unit='<b>')",
            "a budget of epsilon 10 at delta 10<sup>-6</sup>, for each value of "
            "<code>&#39;&lt;b&gt;&#39;</code>",
        ),
        ("no guarantee (approved by amir, bea)", "approved by amir, bea"),
        ("mock (rows invented by the data's owner)", "rows invented by the data&#39;s owner"),
        ("something <else>", "something &lt;else&gt;"),
    ],
)
def test_a_policy_is_said_in_words(text: str, words: str) -> None:
    assert promise(text) == words


def test_holders_are_called_by_their_names() -> None:
    assert [holder(name) for name in ("user:pia", "group:ward", "worker:job_1")] == [
        "pia",
        "group ward",
        "worker:job_1",
    ]


def test_the_menu_says_a_group_once_before_its_first_line(console: GatewayWorld) -> None:
    menu = look(console, "olga", "/").text.partition("</nav>")[0]
    first, oversight = menu.split('<p class="group">Oversight</p>')
    assert "/base-models" in first
    assert "/ledger" in oversight
    assert "Administration" not in menu
