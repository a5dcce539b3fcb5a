"""An administrator who lets themself in as somebody is found out before it helps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from support.gateway import NAMESPACE, GatewayWorld, fit
from taciturn.server.identity.secret import new_id
from taciturn.server.schema.tables import incidents

PASSWORD = "known to the administrator"
WAIT_S = 24 * 3600


@pytest.fixture
def world(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    world = GatewayWorld.for_jobs(lite_engine, tmp_path)
    world.clock.forward(days=20)
    return world


def waiting(world: GatewayWorld) -> str:
    """A fit without a guarantee, which two people have to approve."""
    return str(world.submit(fit(target_epsilon="unlimited")).json()["approval"])


def impersonate(world: GatewayWorld, name: str) -> None:
    """What an administrator does who wants to be somebody else."""
    link = world.post(f"users/{name}/password-links", None, "adam").json()["url"]
    body = {"link": link, "password": PASSWORD}
    assert world.client.post("/v1/password-links/redemptions", json=body).status_code == 200
    login(world, name)


def login(world: GatewayWorld, name: str) -> None:
    """A session lasts for half a day."""
    body = {"name": name, "password": PASSWORD}
    world.tokens[name] = world.client.post("/v1/login", json=body).json()["token"]


def decide(world: GatewayWorld, approval: str, who: str, decision: str = "approve") -> Any:
    return world.post(f"approvals/{approval}/decisions", {"decision": decision}, who)


def test_an_administrator_is_not_both_approvers(world: GatewayWorld) -> None:
    approval = waiting(world)
    for name in ("otto", "bea"):
        impersonate(world, name)
        refused = decide(world, approval, name)
        assert (refused.status_code, refused.json()["code"]) == (403, "policy_refused")
        assert "tell the data's owner" in refused.json()["detail"]
    assert world.get(f"approvals/{approval}", "otto").json()["approved_by"] == []
    world.clock.forward(WAIT_S - 1)
    login(world, "otto")
    assert decide(world, approval, "otto").status_code == 403
    # The person has had a day in which their own password did not work: now they may.
    world.clock.forward(2)
    assert decide(world, approval, "otto").status_code == 201


def test_who_was_reset_may_still_say_no(world: GatewayWorld) -> None:
    approval = waiting(world)
    impersonate(world, "otto")
    assert decide(world, approval, "otto", "reject").json()["state"] == "rejected"


@pytest.mark.parametrize(
    "change", [{"roles": ["owner"], "groups": ["board"]}, {"groups": ["board"]}], ids=str
)
def test_an_administrator_makes_no_approvers_either(
    world: GatewayWorld, change: dict[str, Any]
) -> None:
    approval = waiting(world)
    who = "petra" if "roles" in change else "oscar"
    assert world.client.patch(
        f"/v1/users/{who}", json=change, headers=world.headers("adam")
    ).is_success
    assert decide(world, approval, who).json()["code"] == "policy_refused"
    world.clock.forward(WAIT_S + 1)
    assert decide(world, approval, who).status_code == 201


def test_who_loses_something_is_who_they_were(world: GatewayWorld) -> None:
    approval = waiting(world)
    for change in ({"display_name": "Bea"}, {"groups": ["board"]}):
        world.client.patch("/v1/users/bea", json=change, headers=world.headers("adam"))
    assert decide(world, approval, "bea").status_code == 201


def test_an_owner_who_was_reset_changes_no_terms_and_reads_no_rows(world: GatewayWorld) -> None:
    job = world.submit(fit(target_epsilon=1.0)).json()["id"]
    row = {
        "id": new_id("inc"),
        "job_id": job,
        "namespace": NAMESPACE,
        "log": b"a row",
        "created_at_ms": world.gateway.now_ms(),
    }
    world.gateway.write(lambda connection: connection.execute(insert(incidents).values(row)))
    impersonate(world, "olga")
    mine = world.headers("olga")
    policy = world.get(f"policies/{NAMESPACE}", "olga")
    terms = {"budget": {"epsilon": 100, "delta": 1e-6}, "reset_wait_h": 0}
    grant = {"epsilon": 8, "delta": 1e-6}
    second = {
        "name": "again",
        "source": "/b/again.parquet",
        "unit": "id",
        "namespace": "new",
        "units": 10,
        "budget": {"epsilon": 100, "delta": 1e-6},
    }
    path = f"/v1/policies/{NAMESPACE}"
    answers = [
        world.client.put(path, json=terms, headers={**mine, "If-Match": policy.headers["etag"]}),
        world.client.put(f"{path}/grants/user:petra", json=grant, headers=mine),
        world.client.post(
            "/v1/datasets", json=second, headers={**mine, "Idempotency-Key": "k" * 9}
        ),
        world.get(f"incidents/{row['id']}", "olga"),
    ]
    assert [each.json().get("code") for each in answers] == ["policy_refused"] * 4
    world.clock.forward(WAIT_S + 1)
    login(world, "olga")
    assert world.get(f"incidents/{row['id']}", "olga").json()["log"] == "a row"


def test_the_policy_says_how_long(world: GatewayWorld) -> None:
    world.set_terms(reset_wait_h=1.0)
    approval = waiting(world)
    impersonate(world, "otto")
    assert "for 1 h" in decide(world, approval, "otto").json()["detail"]
    world.clock.forward(3600)
    assert decide(world, approval, "otto").status_code == 201


def test_what_was_opened_later_is_not_concerned(world: GatewayWorld) -> None:
    impersonate(world, "otto")
    world.clock.forward(60)
    world.open_namespace("later", "later")
    asked = world.submit(fit(data={"dataset": "later"}, target_epsilon="unlimited"), "olga")
    assert decide(world, asked.json()["approval"], "otto").status_code == 201
