"""Datasets: their list and pages, spending, what has left, audits and incidents, for whom."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import insert, update

from support.console import look, send
from support.gateway import DATASET, GatewayWorld, gaussian_steps
from taciturn.server.identity.secret import new_id
from taciturn.server.schema.tables import artifacts, datasets, incidents, jobs, tracked_runs
from taciturn.wire.jobs import RemoteSample

AUDIT = {
    "threat_model": "black box",
    "method": "one-run audit",
    "canaries": 200,
    "canary_kind": "random",
    "canary_commitment": "0" * 64,
    "confidence": 0.95,
    "rounds": [],
    "guesses": 100,
    "correct": 60,
    "epsilon_lower_bound": 0.4567,
    "gaussian_epsilon_lower_bound": 0.5,
    "auc": 0.6,
    "promised_epsilon": 2.5,
    "delta": 1e-6,
    "largest_advantage": None,
    "attacker_limits": [],
    "histogram": {"edges": [0.0, 1.0], "included": [1], "excluded": [1]},
    "verdict": "nothing above what is promised",
    "taciturn_version": "0",
}
OVERSEEN = ("/spending", "/spending/history", "/spending/curve", "/disclosures", "/checks")


def release(world: GatewayWorld, job: str, name: str, content: str | None = None) -> None:
    """Write a released file straight into its table."""
    row = {
        "job_id": job,
        "name": name,
        "size_bytes": 2048,
        "sha256": "0" * 64,
        "content": content,
        "created_at_ms": world.gateway.now_ms(),
    }
    world.gateway.write(lambda connection: connection.execute(insert(artifacts).values(row)))


def fitted(world: GatewayWorld) -> tuple[str, str]:
    """Return a fit of paul's that was paid for, and its model."""
    fit = world.add_job("fit", state="succeeded")
    world.spend(fit, ["user:paul"], steps=10)
    model = world.add_model(fit, owner_id=world.users["paul"])
    change = update(jobs).where(jobs.c.id == fit).values(model_id=model)
    world.gateway.write(lambda connection: connection.execute(change))
    for name in ("adapter_model.safetensors", "privacy_report.json", "certificate.json"):
        release(world, fit, name)
    return fit, model


def test_the_list_says_what_is_left_and_is_searched(console: GatewayWorld) -> None:
    console.open_namespace("ward-2026", "Ward-7", epsilon=2.0)
    fitted(console)
    page = look(console, "olga", "/datasets").text
    assert "phee" in page
    assert "Ward-7" in page
    assert ">100%<" in page
    left = 1 - console.get("budgets/patients", "olga").json()["taken"]
    assert f">{100 * left:.1f}%<" in page
    page = look(console, "olga", "/datasets?search=wARD").text
    assert "Ward-7" in page
    assert ">phee<" not in page
    assert "No dataset that you may use" in look(console, "olga", "/datasets?search=%25").text
    assert ">Ward-7<" not in look(console, "paul", "/datasets").text
    assert "/register" in look(console, "oscar", "/datasets").text
    assert "/register" not in look(console, "petra", "/datasets").text
    names = [item["name"] for item in console.get("datasets?search=ward", "olga").json()["items"]]
    assert names == ["Ward-7"]
    page = look(console, "olga", "/datasets?limit=1").text
    assert "cursor=" in page


@pytest.mark.parametrize("end", OVERSEEN)
@pytest.mark.parametrize(
    ("who", "status"),
    [("olga", 200), ("ann", 200), ("paul", 403), ("petra", 403), ("oscar", 404), ("adam", 403)],
)
def test_owner_and_auditors_oversee(console: GatewayWorld, who: str, status: int, end: str) -> None:
    fitted(console)
    answer = look(console, who, f"/datasets/phee{end}")
    assert answer.status_code == status
    assert ("/disclosures" in look(console, who, "/datasets/phee").text) == (status == 200)


@pytest.mark.parametrize("end", OVERSEEN)
def test_an_owner_with_a_grant_sees_nothing_of_anothers_books(
    console: GatewayWorld, end: str
) -> None:
    console.grant("user:otto")
    assert look(console, "otto", "/datasets/phee").status_code == 200
    assert look(console, "otto", f"/datasets/phee{end}").status_code == 404


def test_a_practitioner_sees_their_own_grant_and_a_preview(console: GatewayWorld) -> None:
    console.set_grant("user:petra", epsilon=1.5)
    fitted(console)
    page = look(console, "paul", "/datasets/phee").text
    for words in ("Budget left for you", "Your grant", "patient_id", "1,100", "Try a selection"):
        assert words in page, words
    assert "petra" not in page
    assert "Where the rows are" not in page
    answer = send(console, "paul", "/datasets/phee/selections", select="count(*) AS n")
    assert answer.status_code == 422
    assert answer.headers["hx-retarget"] == "#refusal"
    assert "count" in answer.text.lower()
    answer = send(console, "paul", "/datasets/phee/selections", select="upper(context) AS x")
    assert answer.status_code == 200
    assert "CONTEXT_1" in answer.text


def test_spending_is_shown_over_time_by_person_and_by_job(console: GatewayWorld) -> None:
    assert "No job has taken" in look(console, "olga", "/datasets/phee/spending").text
    assert "Nothing was spent" not in look(console, "olga", "/datasets/phee/spending/curve").text
    console.clock.forward(days=1)
    fit, _ = fitted(console)
    page = look(console, "olga", "/datasets/phee/spending").text
    assert fit in page
    assert 'hx-trigger="load"' in page
    history = look(console, "olga", "/datasets/phee/spending/history").text
    assert "data-chart" in history
    assert '<th scope="row">paul</th>' in history
    assert "It takes a week of spending" in history
    curve = look(console, "olga", "/datasets/phee/spending/curve").text
    assert "by privacy loss distributions" in curve
    console.clock.forward(days=20)
    fitted(console)
    history = look(console, "olga", "/datasets/phee/spending/history").text
    assert "At this pace it is spent" in history
    assert "At this pace, %" in history


def test_a_forecast_begins_anew_with_another_budget(console: GatewayWorld) -> None:
    olga = console.principal("olga")
    console.clock.forward(days=1)
    fitted(console)
    console.clock.forward(days=10)
    forecast = console.services.spending.history("patients", olga).forecast
    assert forecast is not None
    budget = console.services.budgets.read("patients", olga)
    assert forecast.gained == pytest.approx(budget.charged)
    assert forecast.at is not None
    left_days = (forecast.at - console.clock.now).total_seconds() / 86_400
    assert left_days == pytest.approx(10 * (1 - budget.taken) / budget.charged, rel=1e-3)
    console.gateway.ledger.set_cap("cap", "patients", epsilon=16.0, delta=1e-6)
    assert console.services.spending.history("patients", olga).forecast is None
    console.clock.forward(days=8)
    assert console.services.spending.history("patients", olga).forecast is None, "none was spent"
    fitted(console)
    after = console.services.budgets.read("patients", olga).charged
    forecast = console.services.spending.history("patients", olga).forecast
    assert forecast is not None
    assert forecast.gained == pytest.approx(after / 2, rel=1e-3)


def test_shares_of_the_course_are_those_of_the_ledger(console: GatewayWorld) -> None:
    console.clock.forward(days=1)
    fitted(console)
    running = console.add_job("fit", requester="petra")
    ledger, event = console.gateway.ledger, gaussian_steps(5)
    ledger.reserve("r", running, namespace="patients", grants=[], event=event, hold_s=60)
    olga = console.principal("olga")
    history = console.services.spending.history("patients", olga)
    budget = console.services.budgets.read("patients", olga)
    last = history.points[-1]
    assert (last.charged, last.used) == pytest.approx((budget.charged, budget.taken))
    assert {person.name: person.reserved > 0 for person in history.people} == {
        "paul": False,
        "petra": True,
    }
    assert history.read == history.entries == console.entries()
    ledger.release("e", running)
    history = console.services.spending.history("patients", olga)
    assert history.points[-1].used == pytest.approx(budget.charged)
    curve = console.services.spending.curve("patients", olga)
    report = console.get(f"ledger/patients/jobs/{_only_job(console)}", "olga").json()
    at = curve.deltas.index(1e-6)
    assert curve.epsilons[at] == pytest.approx(report["epsilon"])
    assert list(curve.epsilons) == sorted(curve.epsilons, reverse=True)


def _only_job(world: GatewayWorld) -> str:
    items = world.get("ledger/patients/jobs", "olga").json()["items"]
    return str(next(item["job"] for item in items if item["charged"]))


def test_everything_that_left_is_told_with_whom_and_when(console: GatewayWorld) -> None:
    assert "Nothing has left yet" in look(console, "olga", "/datasets/phee/disclosures").text
    fit, model = fitted(console)
    sample = console.add_job("sample", requester="petra", state="succeeded", model_id=model)
    release(console, sample, "samples.jsonl")
    failed = console.add_job("sample", requester="petra", state="failed", model_id=model)
    release(console, failed, "samples.jsonl")
    # Text that was sent on as it was written has left, though its reader has stopped it then.
    stopped = [stream(console, model, state) for state in ("cancelled", "failed")]
    unbegun = stream(console, model, "cancelled", started_at_ms=None)
    console.open_namespace("others", "other")
    other = console.add_job("fit", "other", state="succeeded", namespace="others")
    release(console, other, "certificate.json")
    console.clock.forward(seconds=1)
    for path in (f"models/{model}", f"jobs/{fit}", f"jobs/{fit}/events", "datasets/phee/preview"):
        assert console.get(path).status_code == 200, path
    assert console.get(f"models/{model}/certificate", "petra").status_code == 404
    look(console, "olga", f"/jobs/{fit}")
    page = look(console, "olga", "/datasets/phee/disclosures").text
    for words in (
        "Fitted model",
        "Texts that a model wrote",
        "Events of a job",
        "Preview",
        "<td>paul</td>",
        "<td>petra</td>",
        "6.14 kB",
    ):
        assert words in page, words
    assert other not in page
    assert failed not in page
    assert "times</span>" not in page
    assert unbegun not in page
    assert page.count("a stream that was cut short") == 2
    assert all(job in page for job in stopped)
    assert "a notification told somebody of a job" in page
    items = console.get("datasets/phee/disclosures", "olga").json()["items"]
    kinds = [(item["step"], item["kind"], item["to"]) for item in items]
    assert kinds[:4] == [
        ("read", "preview", "user:paul"),
        ("read", "events", "user:paul"),
        ("read", "job", "user:paul"),
        ("read", "model", "user:paul"),
    ]
    assert set(kinds[4:]) == {
        ("released", "model", "user:paul"),
        ("released", "texts", "user:petra"),
    }
    paged, cursor = [], ""
    while True:
        answer = console.get(f"datasets/phee/disclosures?limit=2{cursor}", "olga").json()
        paged += answer["items"]
        if answer["next_cursor"] is None:
            break
        cursor = f"&cursor={answer['next_cursor']}"
    assert paged == items
    assert console.get("datasets/phee/disclosures?cursor=ImEi", "olga").status_code == 422
    for who, status in (("paul", 403), ("oscar", 404), ("ann", 200)):
        assert console.get("datasets/phee/disclosures", who).status_code == status


def test_a_promise_stands_beside_what_an_audit_showed(console: GatewayWorld) -> None:
    assert (
        "No model of these data was audited" in look(console, "olga", "/datasets/phee/checks").text
    )
    _, model = fitted(console)
    audit = console.add_job("audit", state="succeeded", model_id=model)
    release(console, audit, "audit.json", json.dumps(AUDIT))
    page = look(console, "olga", "/datasets/phee/checks").text
    assert "0.456" in page
    assert "2.5" in page
    assert model in page
    assert "It is not kept here" in page, "raw loss is where it can be had"


def test_incidents_are_listed_and_read_by_the_owner(console: GatewayWorld) -> None:
    failed = console.add_job("fit", state="failed", failure="data_unreadable")
    incident = new_id("inc")
    row = {
        "id": incident,
        "job_id": failed,
        "namespace": "patients",
        "log": b"row 7: <script>alert(1)</script>",
        "created_at_ms": console.gateway.now_ms(),
    }
    console.gateway.write(lambda connection: connection.execute(insert(incidents).values(row)))
    page = look(console, "olga", "/datasets/phee/checks").text
    assert f'href="/incidents/{incident}"' in page
    assert "cannot reach or read the data" in page
    assert "row 7" not in page
    assert f'href="/incidents/{incident}"' not in look(console, "ann", "/datasets/phee/checks").text
    log = look(console, "olga", f"/incidents/{incident}").text
    assert "row 7: &lt;script&gt;" in log
    assert look(console, "ann", f"/incidents/{incident}").status_code == 403
    assert look(console, "otto", f"/incidents/{incident}").status_code == 404


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</textarea><script>alert(1)</script>",
    "{{ 7 * 7 }}<%= 7*7 %>",
    "\u202eevil<b>",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_text_in_every_field(console: GatewayWorld, text: str) -> None:
    mock = json.dumps({"context": text})
    send(console, "olga", "/datasets/phee/change", description=text, mock=mock)
    model_terms = {"version": "1", "epsilon": "8", "delta": "1e-6", "models": text}
    send(console, "olga", "/policies/patients", **model_terms)
    columns = json.dumps([{"name": text, "type": "string"}])
    change = update(datasets).where(datasets.c.name == DATASET)
    for values in (
        {"columns": columns},
        {"state": "unconfirmed", "columns": None, "found": columns},
    ):
        console.gateway.write(
            lambda connection, values=values: connection.execute(change.values(**values))
        )
        for path in ("/datasets/phee", "/datasets/phee/change", "/policies/patients", "/datasets"):
            answer = look(console, "olga", path)
            assert answer.status_code == 200, path
            assert text not in answer.text, path
    refusals = [
        send(console, "olga", "/register", name=text, source=text, namespace=text, unit=text),
        send(console, "olga", "/policies/patients/grants", holder=text, epsilon="1", delta="1e-6"),
        send(console, "olga", "/policies/patients/consequences", **(model_terms | {"kinds": text})),
        send(console, "olga", "/datasets/phee/removal", sure=text),
        look(console, "olga", f"/datasets?search={text}"),
        look(console, "olga", f"/policies/patients?holder={text}"),
        look(console, "olga", f"/register?namespace={text}"),
    ]
    for answer in refusals:
        assert text not in answer.text


def stream(world: GatewayWorld, model: str, state: str, **columns: Any) -> str:
    """Return a sample job of petra's that was to be read as it is written."""
    request = RemoteSample(model=model, prompts=('"stream":true',), n=1, stream=True)
    columns = {"started_at_ms": world.gateway.now_ms(), **columns}
    job = world.add_job("sample", requester="petra", state=state, model_id=model, **columns)
    change = update(jobs).where(jobs.c.id == job).values(request=request.model_dump_json())
    world.gateway.write(lambda connection: connection.execute(change))
    return job


def test_jobs_that_release_nothing_are_no_disclosure(console: GatewayWorld) -> None:
    console.add_job("fit", state="succeeded")
    assert console.get("datasets/phee/disclosures", "olga").json()["items"] == []


def test_what_a_tracker_has_is_told(console: GatewayWorld) -> None:
    told, _ = fitted(console)
    untold, _ = fitted(console)
    rows = [
        {"job_id": job, "sequence": sequence, "attempts": 0, "next_at_ms": 0}
        for job, sequence in ((told, 5), (untold, 0))
    ]
    console.gateway.write(lambda connection: connection.execute(insert(tracked_runs), rows))
    items = console.get("datasets/phee/disclosures", "olga").json()["items"]
    tracked = {item["job"]: item["tracked"] for item in items if item["step"] == "released"}
    assert tracked == {told: True, untold: False}
    page = look(console, "olga", "/datasets/phee/disclosures").text
    assert page.count("and to MLflow") == 1


def test_the_same_read_again_and_again_is_one_line(console: GatewayWorld) -> None:
    for _ in range(3):
        assert console.get("datasets/phee/preview").status_code == 200
    page = look(console, "olga", "/datasets/phee/disclosures").text
    assert page.count(">Preview") == 1
    assert "3 times" in page
