"""An administrator who lets themself in as somebody is found out before it helps them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from gateways.world import NAMESPACE, fit
from taciturn.server.database import open_database
from taciturn.server.identity.secret import new_id
from taciturn.server.schema.tables import incidents
from ward import Ward, make_ward

PASSWORD = "known to the administrator"
WAIT_S = 24 * 3600


@pytest.fixture
def ward(migrated_file: Path, tmp_path: Path) -> Iterator[Ward]:
    shutil.copy(migrated_file, tmp_path / "gateway.db")
    engine = open_database(f"sqlite:///{tmp_path / 'gateway.db'}")
    made = make_ward(engine, tmp_path)
    made.watch.forward(20 * 86_400)
    yield made
    engine.dispose()


def waiting(ward: Ward) -> str:
    """A fit without a guarantee, which two people have to approve."""
    return str(ward.ask(fit(target_epsilon="unlimited")).json()["approval"])


def impersonate(ward: Ward, name: str) -> None:
    """What an administrator does who wants to be somebody else."""
    link = ward.post(f"users/{name}/password-links", None, "adam").json()["url"]
    body = {"link": link, "password": PASSWORD}
    assert ward.client.post("/v1/password-links/redemptions", json=body).status_code == 200
    login(ward, name)


def login(ward: Ward, name: str) -> None:
    """A session lasts for half a day."""
    body = {"name": name, "password": PASSWORD}
    ward.world.tokens[name] = ward.client.post("/v1/login", json=body).json()["token"]


def decide(ward: Ward, approval: str, who: str, decision: str = "approve") -> Any:
    return ward.post(f"approvals/{approval}/decisions", {"decision": decision}, who)


def test_an_administrator_is_not_both_approvers(ward: Ward) -> None:
    approval = waiting(ward)
    for name in ("otto", "bea"):
        impersonate(ward, name)
        refused = decide(ward, approval, name)
        assert (refused.status_code, refused.json()["code"]) == (403, "policy_refused")
        assert "tell the data's owner" in refused.json()["detail"]
    assert ward.get(f"approvals/{approval}", "otto").json()["approved_by"] == []
    ward.watch.forward(WAIT_S - 1)
    login(ward, "otto")
    assert decide(ward, approval, "otto").status_code == 403
    # The person has had a day in which their own password did not work: now they may.
    ward.watch.forward(2)
    assert decide(ward, approval, "otto").status_code == 201


def test_who_was_reset_may_still_say_no(ward: Ward) -> None:
    approval = waiting(ward)
    impersonate(ward, "otto")
    assert decide(ward, approval, "otto", "reject").json()["state"] == "rejected"


@pytest.mark.parametrize(
    "change", [{"roles": ["owner"], "groups": ["board"]}, {"groups": ["board"]}], ids=str
)
def test_an_administrator_makes_no_approvers_either(ward: Ward, change: dict[str, Any]) -> None:
    approval = waiting(ward)
    who = "petra" if "roles" in change else "oscar"
    assert ward.client.patch(
        f"/v1/users/{who}", json=change, headers=ward.world.as_("adam")
    ).is_success
    assert decide(ward, approval, who).json()["code"] == "policy_refused"
    ward.watch.forward(WAIT_S + 1)
    assert decide(ward, approval, who).status_code == 201


def test_who_loses_something_is_who_they_were(ward: Ward) -> None:
    approval = waiting(ward)
    for change in ({"display_name": "Bea"}, {"groups": ["board"]}):
        ward.client.patch("/v1/users/bea", json=change, headers=ward.world.as_("adam"))
    assert decide(ward, approval, "bea").status_code == 201


def test_an_owner_who_was_reset_changes_no_terms_and_reads_no_rows(ward: Ward) -> None:
    job = ward.ask(fit(target_epsilon=1.0)).json()["id"]
    row = {
        "id": new_id("inc"),
        "job_id": job,
        "namespace": NAMESPACE,
        "log": b"a row",
        "created_at_ms": ward.gateway.now_ms(),
    }
    ward.gateway.write(lambda connection: connection.execute(insert(incidents).values(row)))
    impersonate(ward, "olga")
    mine = ward.world.as_("olga")
    policy = ward.get(f"policies/{NAMESPACE}", "olga")
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
        ward.client.put(path, json=terms, headers={**mine, "If-Match": policy.headers["etag"]}),
        ward.client.put(f"{path}/grants/user:petra", json=grant, headers=mine),
        ward.client.post("/v1/datasets", json=second, headers={**mine, "Idempotency-Key": "k" * 9}),
        ward.get(f"incidents/{row['id']}", "olga"),
    ]
    assert [each.json().get("code") for each in answers] == ["policy_refused"] * 4
    ward.watch.forward(WAIT_S + 1)
    login(ward, "olga")
    assert ward.get(f"incidents/{row['id']}", "olga").json()["log"] == "a row"


def test_the_policy_says_how_long(ward: Ward) -> None:
    ward.world.set_terms(reset_wait_h=1.0)
    approval = waiting(ward)
    impersonate(ward, "otto")
    assert "for 1 h" in decide(ward, approval, "otto").json()["detail"]
    ward.watch.forward(3600)
    assert decide(ward, approval, "otto").status_code == 201


def test_what_was_opened_later_is_not_concerned(ward: Ward) -> None:
    impersonate(ward, "otto")
    ward.watch.forward(60)
    ward.world.open_namespace("later", "later")
    asked = ward.ask(fit(data={"dataset": "later"}, target_epsilon="unlimited"), "olga")
    assert decide(ward, asked.json()["approval"], "otto").status_code == 201
