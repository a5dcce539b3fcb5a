"""People: let in, changed, locked out; duties kept apart."""

from __future__ import annotations

import pytest

from support.gateway import PASSWORD, GatewayWorld
from taciturn.wire.identity import Role


def test_an_administrator_lets_people_in_and_lists_them_by_page(world: GatewayWorld) -> None:
    root, client = world.person("root", Role.ADMIN), world.client
    for name in ("ada", "bob", "eve"):
        body = {"name": name, "roles": ["practitioner"], "groups": ["icu"]}
        assert client.post("/v1/users", headers=root, json=body).status_code == 201
    assert client.post("/v1/users", headers=root, json=body).json()["code"] == "conflict"
    first = client.get("/v1/users?limit=3", headers=root).json()
    assert [each["name"] for each in first["items"]] == ["ada", "bob", "eve"]
    assert first["items"][0]["groups"] == ["icu"]
    rest = client.get("/v1/users", params={"cursor": first["next_cursor"]}, headers=root).json()
    assert [each["name"] for each in rest["items"]] == ["root"]
    assert rest["next_cursor"] is None
    assert client.get("/v1/users/nobody", headers=root).status_code == 404


@pytest.mark.parametrize("other", [Role.ADMIN, Role.OWNER, Role.PRACTITIONER])
def test_an_auditor_has_no_other_role(lite: GatewayWorld, other: Role) -> None:
    root = lite.person("root", Role.ADMIN)
    body = {"name": "eve", "roles": ["auditor", other]}
    refused = lite.client.post("/v1/users", headers=root, json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "separation_of_duty")
    lite.person("eve", Role.AUDITOR)
    refused = lite.client.patch("/v1/users/eve", headers=root, json={"roles": ["auditor", other]})
    assert refused.json()["code"] == "separation_of_duty"


@pytest.mark.parametrize(
    "change", [{"roles": ["admin", "owner"]}, {"groups": ["icu"]}, {"disabled": True}]
)
def test_nobody_changes_their_own_roles_groups_or_state(
    lite: GatewayWorld, change: dict[str, object]
) -> None:
    root = lite.person("root", Role.ADMIN)
    lite.person("other", Role.ADMIN)
    before = lite.client.get("/v1/users/root", headers=root).json()
    refused = lite.client.patch("/v1/users/root", headers=root, json=change)
    assert refused.json()["code"] == "separation_of_duty"
    assert lite.client.get("/v1/users/root", headers=root).json() == before
    named = lite.client.patch("/v1/users/root", headers=root, json={"display_name": "Root"})
    assert named.json()["display_name"] == "Root"


def test_the_last_enabled_administrator_stays(world: GatewayWorld) -> None:
    """Two may remove each other, once: the second removal finds nobody left to be admin."""
    one, two = world.person("one", Role.ADMIN), world.person("two", Role.ADMIN)
    client = world.client
    assert client.patch("/v1/users/two", headers=one, json={"roles": ["owner"]}).is_success
    # The one who was demoted has no say any more, at once.
    assert client.patch("/v1/users/one", headers=two, json={"disabled": True}).status_code == 403
    world.person("three", Role.ADMIN)
    assert client.patch("/v1/users/three", headers=one, json={"disabled": True}).is_success


@pytest.mark.parametrize("change", [{"disabled": True}, {"roles": ["owner"]}])
def test_a_race_of_two_administrators_leaves_one(
    world: GatewayWorld, change: dict[str, object]
) -> None:
    """The rule is applied in the transaction that changes, whatever was authenticated before."""
    from taciturn.server.problems import ProblemError
    from taciturn.wire.identity import UserChange

    one = world.person("one", Role.ADMIN)["Authorization"].split()[1]
    two = world.person("two", Role.ADMIN)["Authorization"].split()[1]
    directory, users = world.services.directory, world.services.users
    first, second = directory.authenticate(one), directory.authenticate(two)
    asked = UserChange.model_validate(change)
    users.change(first, "two", asked)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="no enabled administrator") as caught:
        users.change(second, "one", asked)  # type: ignore[arg-type]
    assert caught.value.code == "conflict"


def test_who_is_disabled_is_out_at_once_and_their_tokens_stay_revoked(
    world: GatewayWorld,
) -> None:
    root, ada = world.person("root", Role.ADMIN), world.person("ada", Role.OWNER)
    client = world.client
    assert client.get("/v1/self", headers=ada).is_success
    assert client.patch("/v1/users/ada", headers=root, json={"disabled": True}).is_success
    assert client.get("/v1/self", headers=ada).status_code == 401
    assert client.patch("/v1/users/ada", headers=root, json={"disabled": False}).is_success
    assert client.get("/v1/self", headers=ada).status_code == 401


def test_a_changed_role_counts_at_once(world: GatewayWorld) -> None:
    root, ada = world.person("root", Role.ADMIN), world.person("ada", Role.PRACTITIONER)
    client = world.client
    assert client.get("/v1/audit-log", headers=ada).status_code == 403
    assert client.patch("/v1/users/ada", headers=root, json={"roles": ["auditor"]}).is_success
    assert client.get("/v1/audit-log", headers=ada).is_success
    assert client.get("/v1/self", headers=ada).json()["roles"] == ["auditor"]


def test_nobody_sets_a_password_for_somebody_else(lite: GatewayWorld) -> None:
    """The mutant: an administrator who knows it logs in as them."""
    root = lite.person("root", Role.ADMIN)
    lite.person("ada", Role.OWNER)
    new = {"name": "eve", "roles": ["owner"], "password": PASSWORD}
    assert lite.client.post("/v1/users", headers=root, json=new).status_code == 422
    changed = lite.client.patch("/v1/users/ada", headers=root, json={"password": PASSWORD})
    assert changed.status_code == 422
    for name in ("ada", "eve"):
        login = {"name": name, "password": PASSWORD}
        assert lite.client.post("/v1/login", json=login).status_code == 401
