"""The plan's page: what its form offers, what follows from it, and what is wrong at its field."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from httpx import Response

from support.console import look, send
from support.gateway import MODEL, GatewayWorld, fit
from taciturn.server.console.rendering import share
from taciturn.server.jobs.submission import Jobs
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.machines import MachinePlan

FIELDS = {"dataset": "phee", "model": MODEL, "text_field": "context", "target_epsilon": "1"}


def planned(world: GatewayWorld, who: str = "paul", **fields: str) -> Response:
    return send(world, who, "/plan", **{**FIELDS, "steps": "20", **fields})


def words(answer: Response) -> str:
    """The text of an answer, without its tags."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text)))


def test_a_plan_says_what_it_is_and_costs(console: GatewayWorld) -> None:
    before = console.entries()
    text = words(planned(console))
    for part in (
        "This can run", "Epsilon", "Noise", "Worth", "of what a fit without privacy would learn",
        "Steps 20", "Time", "Memory", "GiB", "the gateway's own machine", "Share of the budget",
        "Share of your grant", "100% left now", "Reasons and details", "With more or less time",
    ):  # fmt: skip
        assert part in text, part
    assert console.entries() == before
    assert not console.get("jobs").json()["items"]


def test_the_plan_says_what_is_left_before_and_after(console: GatewayWorld) -> None:
    shown = console.post("plans", fit(steps=20)).json()
    assert shown["left_of_budget"] == shown["left_of_grant"] == 1
    console.submit(fit(steps=20))
    again = console.post("plans", fit(steps=20)).json()
    assert again["left_of_budget"] == pytest.approx(1 - shown["share_of_budget"])
    assert again["left_of_grant"] == pytest.approx(1 - shown["share_of_grant"])


def test_what_is_left_after_an_unlike_job_is_what_is_left_then(console: GatewayWorld) -> None:
    """Shares of unlike jobs do not add up: the difference of two of them is not what is left."""
    body = fit(target_epsilon=2.0, steps=1)
    console.spend(console.add_job("fit"), ["user:paul"], steps=50)
    shown = console.post("plans", body).json()
    by_itself = shown["left_of_budget"] - shown["share_of_budget"]
    assert by_itself - shown["left_of_budget_after"] > 0.001
    answer = planned(console, target_epsilon="2", steps="1", batch_size="64")
    after = share(shown["left_of_budget_after"])
    taken = share(shown["left_of_budget"] - shown["left_of_budget_after"])
    assert f"{share(shown['left_of_budget'])} left now, {after} after it" in words(answer)
    assert f"{taken} for this fit" in words(answer)
    assert f"It holds {taken} of the budget" in answer.text
    console.submit(body)
    then = console.post("plans", body).json()
    for name in ("left_of_budget", "left_of_grant"):
        assert then[name] == pytest.approx(shown[f"{name}_after"], abs=1e-9)


def test_a_plan_that_has_no_room_offers_one_that_has(console: GatewayWorld) -> None:
    answer = planned(console, "olga", target_epsilon="8")
    assert "The budget has no room for this" in answer.text
    button = re.search(r'data-set="target_epsilon" data-value="([^"]*)"', answer.text)
    assert button is not None
    assert "disabled" in answer.text
    fitting = planned(console, "olga", target_epsilon=button[1])
    assert "This can run" in fitting.text
    assert "disabled" not in fitting.text


def test_more_than_the_grant_needs_two_people(console: GatewayWorld) -> None:
    answer = planned(console, target_epsilon="4.2")
    assert "This can run, once two people approve it" in words(answer)
    assert "It asks for more than your grant has left" in answer.text
    assert 'data-set="target_epsilon"' in answer.text


def test_no_guarantee_says_what_that_means(console: GatewayWorld) -> None:
    answer = planned(console, guarantee="none")
    assert "Nothing bounds what the model tells about a person" in answer.text
    assert "Ask for a fit without any guarantee?" in answer.text
    asked = send(console, "paul", "/jobs", **FIELDS, guarantee="none")
    job = asked.headers["hx-redirect"].rpartition("/")[2]
    assert console.job_state(job) == "awaiting_approval"


def test_no_guarantee_is_offered_where_two_could_approve_it(console: GatewayWorld) -> None:
    assert 'value="none"' in look(console, "paul", "/plan?dataset=phee").text
    console.set_terms(approvers=[])
    assert 'value="none"' not in look(console, "paul", "/plan?dataset=phee").text


@pytest.mark.parametrize(
    ("field", "value", "place", "words"),
    [
        ("target_epsilon", "0", "target_epsilon", "[0.01, 1000]"),
        ("target_epsilon", "much", "target_epsilon", "give one such as 3"),
        ("target_epsilon", "nan", "target_epsilon", "[0.01, 1000]"),
        ("steps", "0", "length", "greater than or equal to 1"),
        ("steps", "many", "length", "integer"),
        ("batch_size", "100000", "batch_size", "at most 1100"),
        ("model", "other/model", "model", "is not registered here"),
        ("max_minutes", "0.0001", "length", "greater than or equal to 0.01"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    console: GatewayWorld, field: str, value: str, place: str, words: str
) -> None:
    answer = planned(console, **{field: value})
    assert answer.status_code == 422
    assert answer.headers["hx-retarget"] == f"#error-{place}"
    assert words in answer.text
    assert not answer.text.startswith(f"{field}: "), (
        "the field is named by its label, not by its key"
    )
    page = look(console, "paul", "/plan").text
    assert f'id="error-{place}"' in page


def test_the_policy_of_the_data_bounds_the_form(console: GatewayWorld) -> None:
    console.set_terms(job_epsilon=2.0)
    page = look(console, "paul", "/plan/columns?dataset=phee").text
    assert 'data-high="2.0"' in page
    assert "One job may cost at most 2" in page
    over = planned(console, target_epsilon="3")
    assert (over.status_code, over.headers["hx-retarget"]) == (403, "#error-target_epsilon")
    console.set_terms(models=["meta/*"])
    assert "No base model is registered here" in look(console, "paul", "/plan").text
    console.set_terms(kinds=["sample"])
    assert "allows no fits" in look(console, "paul", "/plan").text


def test_a_fit_is_planned_again_with_the_same_fields(console: GatewayWorld) -> None:
    body = fit(
        data={
            "dataset": "phee",
            "select": "context",
            "part": {"side": "train", "test_share": 0.1},
        },
        target_epsilon=1.5, steps=None, epochs=2, learning_rate=0.003, method="lora",
        purpose="compare", name="notes",
    )  # fmt: skip
    job = console.submit(body).json()
    page = look(console, "paul", f"/plan?like={job['id']}").text
    for part in (
        'value="1.5"', 'name="epochs" value="2.0"', 'value="compare"', 'value="notes"',
        ">context</textarea>", "learning rate 0.003", "train of the split",
    ):  # fmt: skip
        assert part in page, part
    fields = {"target_epsilon": "1.5", "epochs": "2", "batch_size": "64", "like": job["id"]}
    fields |= {"select": "context", "purpose": "compare", "name": "notes"}
    again = send(console, "paul", "/jobs", **{**FIELDS, **fields})
    twin = console.get(f"jobs/{again.headers['hx-redirect'].rpartition('/')[2]}").json()
    assert twin["request"] == job["request"]
    assert twin["id"] != job["id"]
    assert look(console, "petra", f"/plan?like={job['id']}").status_code == 404


def test_a_button_that_is_pressed_twice_asks_once(console: GatewayWorld) -> None:
    key = re.search(r'name="key" value="([^"]*)"', planned(console).text)
    assert key is not None
    fields = {**FIELDS, "steps": "20", "key": key[1]}
    paths = {send(console, "paul", "/jobs", **fields).headers["hx-redirect"] for _ in range(2)}
    assert len(paths) == 1
    other = send(console, "paul", "/jobs", **{**fields, "steps": "21"})
    assert other.headers["hx-redirect"] not in paths


def test_the_cost_of_a_machine_is_that_of_the_planned_time(
    console: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def machine(jobs: Jobs, *_: Any) -> MachinePlan:
        return MachinePlan(
            text="one machine with one GPU, of the kind a100", memory_bytes=2**33, gpus=1,
            price_per_hour=3.6, currency="EUR",
        )  # fmt: skip

    jobs = console.services.jobs
    object.__setattr__(jobs, "machine", lambda *a: machine(jobs, *a))
    plan = jobs.plan(console.principal("paul"), RemoteFit(**fit()))
    assert plan.machine is not None
    assert plan.duration is not None
    assert plan.machine.cost == pytest.approx(plan.duration.seconds / 1000, abs=1e-4)
    text = words(planned(console))
    assert "EUR" in text
    assert "8 GiB on each GPU; one machine with one GPU" in text


def test_a_dataset_in_the_link_is_chosen(console: GatewayWorld) -> None:
    console.open_namespace("others", "zebra")
    page = look(console, "olga", "/plan?dataset=zebra").text
    assert "<option selected>zebra</option>" in page
    assert look(console, "paul", "/plan?dataset=zebra").status_code == 404
    assert "no dataset that you may use" in look(console, "petra", "/plan").text
