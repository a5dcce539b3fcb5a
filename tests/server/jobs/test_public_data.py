"""A fit that names public data: planned, approved, given to a worker, and checked in its report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.gateway import DATASET, GatewayWorld, fit, refused
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.reports.privacy import PublicData
from taciturn.server.jobs import report_check
from taciturn.server.jobs.report_check import disagreement

CASES: dict[str, Any] = {
    "name": "cases",
    "source": "/open/cases.jsonl",
    "licence": "CC BY 4.0",
    "origin": "case reports of an open journal",
    "text_field": "case",
}


@pytest.fixture
def world(world: GatewayWorld) -> GatewayWorld:
    assert world.ask("olga", "POST", "/public-datasets", CASES).status_code == 201
    return world


def test_the_plan_and_the_job_show_it(world: GatewayWorld) -> None:
    plain = world.post("plans", fit()).json()
    plan = world.post("plans", fit(public_data="cases")).json()
    text = plan["public_data"]
    assert (text["name"], text["licence"], text["source"]) == ("cases", "CC BY 4.0", None)
    assert plain["public_data"] is None
    assert plan["share_of_budget"] == plain["share_of_budget"]  # it costs nothing
    job = world.submit(fit(public_data="cases")).json()
    assert (job["public_data"], job["request"]["public_data"]) == ("cases", "cases")


def test_private_data_are_never_public(world: GatewayWorld) -> None:
    text = refused(world.post("plans", fit(public_data=DATASET)), 422, "invalid")
    assert "private data set" in text
    assert "/v1/public-datasets" in text
    refused(world.submit(fit(public_data=DATASET)), 422, "invalid")
    # Whoever may not know of it is told what they would be told of nothing.
    world.open_namespace("others", "secret")
    hidden = refused(world.post("plans", fit(public_data="secret")), 404, "not_found")
    nothing = refused(world.post("plans", fit(public_data="nothing")), 404, "not_found")
    assert hidden.replace("secret", "nothing") == nothing


def test_public_data_are_never_fitted_as_if_protected(world: GatewayWorld) -> None:
    body = fit(data={"dataset": "cases"})
    assert "nothing in it can be protected" in refused(world.post("plans", body), 422, "invalid")
    body = fit(data={"dataset": "cases"}, public_data="cases")
    refused(world.submit(body), 422, "invalid")


def test_what_was_removed_is_not_used(world: GatewayWorld) -> None:
    world.ask("olga", "DELETE", "/public-datasets/cases")
    refused(world.post("plans", fit(public_data="cases")), 404, "not_found")


def test_approvers_see_it(world: GatewayWorld) -> None:
    body = fit(public_data="cases", target_epsilon="unlimited")
    approval = world.submit(body).json()["approval"]
    (listed,) = world.get("approvals", "otto").json()["items"]
    for view in (listed, world.get(f"approvals/{approval}", "otto").json()):
        assert view["public_data"]["origin"] == "case reports of an open journal"
        assert view["public_data"]["declared_by"] == "olga"


def test_a_worker_is_told_where_it_is_and_says_what_it_is(world: GatewayWorld) -> None:
    worker = world.running(fit(public_data="cases"))
    answer = worker.take("operation-1")
    source = answer.json()["public_source"]
    assert (source["name"], source["source"], source["text_field"]) == (
        "cases",
        "/open/cases.jsonl",
        "case",
    )
    assert "olga has registered it" in source["declaration"]
    assert source["prefixes"] == answer.json()["source"]["prefixes"]
    marks = {"first": True, "places": ["a" * 32], "contents": ["b" * 32]}
    assert worker.say("source", {**marks, "public": True}).status_code == 204
    assert worker.say("source", marks).status_code == 204
    refused(worker.say("source", {**marks, "public": True}), 409, "source_taken")


def test_a_job_without_it_has_none_to_open(world: GatewayWorld) -> None:
    worker = world.running(fit())
    assert worker.take("operation-1").json()["public_source"] is None
    marks = {"first": True, "places": ["a" * 32], "public": True}
    refused(worker.say("source", marks), 422, "invalid")


def test_a_report_of_other_public_text_releases_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Report:
        guarantee, epsilon, delta = "differential privacy", 1.0, 1e-6
        dp_event = event_to_dict(dpsgd_event(sampling_probability=0.1, noise_multiplier=1, steps=2))
        public_data = (PublicData(records=40, sha256="ef" * 32, name="cases"),)

    class Reports:
        @staticmethod
        def model_validate_json(text: bytes) -> type[Report]:
            return Report

    monkeypatch.setattr(report_check, "PrivacyReport", Reports)
    event = dpsgd_event(sampling_probability=0.1, noise_multiplier=1, steps=2)
    for public in (None, "guides"):
        reason = disagreement(json.dumps({}).encode(), event, None, public)  # type: ignore[arg-type]
        assert reason == "the report names other public text than the request"
