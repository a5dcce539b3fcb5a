"""Links for passwords: the person alone sets one, once; what follows is shown, and waits."""

from __future__ import annotations

from typing import Any

import pytest

from support.gateway import PASSWORD, GatewayWorld, bearer
from taciturn.wire.identity import Role

ANOTHER = "another horse battery staple"


def link_for(world: GatewayWorld, root: dict[str, str], name: str = "ada") -> str:
    made = world.client.post(f"/v1/users/{name}/password-links", headers=root)
    assert made.status_code == 201, made.text
    url: str = made.json()["url"]
    return url


def redeem(world: GatewayWorld, link: str, password: str = ANOTHER) -> Any:
    body = {"link": link, "password": password}
    return world.client.post("/v1/password-links/redemptions", json=body)


def login(world: GatewayWorld, password: str) -> Any:
    return world.client.post("/v1/login", json={"name": "ada", "password": password})


@pytest.fixture
def root(world: GatewayWorld) -> dict[str, str]:
    return world.person("root", Role.ADMIN)


def test_a_link_sets_a_password_once_and_ends_what_was(
    world: GatewayWorld, root: dict[str, str]
) -> None:
    ada = world.person("ada", Role.OWNER, password=PASSWORD)
    link = link_for(world, root)
    # Making one changes nothing for the person but what they are shown.
    assert login(world, PASSWORD).status_code == 201
    (shown,) = world.client.get("/v1/self", headers=ada).json()["password_links"]
    assert (shown["made_by"], shown["redeemed_at"]) == ("root", None)
    assert redeem(world, link).json() == {"name": "ada"}
    assert world.client.get("/v1/self", headers=ada).status_code == 401
    assert login(world, PASSWORD).status_code == 401
    assert redeem(world, link).status_code == 401
    mine = bearer(login(world, ANOTHER).json()["token"])
    me = world.client.get("/v1/self", headers=mine).json()
    (shown,) = me["password_links"]
    assert (shown["redeemed_at"], shown["address"]) == (me["access_changed_at"], "testclient")


def test_who_made_a_link_and_that_it_was_used_is_on_record_without_it(
    world: GatewayWorld, root: dict[str, str]
) -> None:
    world.person("ada", Role.OWNER)
    link = link_for(world, root)
    redeem(world, link)
    made, used = world.recorded()
    assert (made.actor, made.resource) == ("user:root", "/v1/users/ada/password-links")
    assert (used.actor, used.resource) == ("user:ada", "/v1/password-links/redemptions")
    secret = link.split("_", 2)[2]
    assert len(secret) > 20
    assert secret not in str((made, used))


def test_one_link_at_a_time_and_not_for_ever(lite: GatewayWorld) -> None:
    root = lite.person("root", Role.ADMIN)
    lite.person("ada", Role.OWNER)
    first, second = link_for(lite, root), link_for(lite, root)
    refused = redeem(lite, first)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    lite.clock.forward(seconds=lite.gateway.settings.password_link_s + 1)
    others = [redeem(lite, link) for link in (second, "tac_x", second[:-1] + "A")]
    assert [each.json()["detail"] for each in others] == 3 * [refused.json()["detail"]]


@pytest.mark.parametrize("ending", ["password", "disabled"])
def test_a_link_is_void_once_the_person_has_another_password_or_is_out(
    lite: GatewayWorld, ending: str
) -> None:
    root, ada = lite.person("root", Role.ADMIN), lite.person("ada", Role.OWNER, password=PASSWORD)
    link = link_for(lite, root)
    if ending == "password":
        body = {"current": PASSWORD, "new": "a third horse battery"}
        assert lite.client.put("/v1/self/password", headers=ada, json=body).status_code == 204
    else:
        for disabled in (True, False):
            change = {"disabled": disabled}
            assert lite.client.patch("/v1/users/ada", headers=root, json=change).is_success
    assert redeem(lite, link).status_code == 401


def test_who_logs_in_elsewhere_or_is_out_gets_no_link(lite: GatewayWorld) -> None:
    root = lite.person("root", Role.ADMIN)
    lite.services.directory.create_user("oda", [Role.OWNER], oidc_subject="idp 1")
    lite.person("out", Role.OWNER)
    lite.client.patch("/v1/users/out", headers=root, json={"disabled": True})
    for name, code in (("oda", "conflict"), ("out", "conflict"), ("nobody", "not_found")):
        refused = lite.client.post(f"/v1/users/{name}/password-links", headers=root)
        assert refused.json()["code"] == code


def test_failed_logins_are_forgotten_with_the_old_password(lite: GatewayWorld) -> None:
    root = lite.person("root", Role.ADMIN)
    lite.person("ada", Role.OWNER, password=PASSWORD)
    for _ in range(lite.gateway.settings.login_attempts + 1):
        refused = login(lite, "wrong")
    assert refused.status_code == 429
    redeem(lite, link_for(lite, root))
    assert login(lite, ANOTHER).status_code == 201


def test_the_page_of_a_link_loads_nothing_and_sets_the_password(lite: GatewayWorld) -> None:
    root = lite.person("root", Role.ADMIN)
    lite.person("ada", Role.OWNER)
    page, _, secret = link_for(lite, root).partition("#")
    shown = lite.client.get("/" + page.split("/", 3)[3])
    assert shown.status_code == 200
    policy = shown.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "form-action 'self'" in policy
    form = {"link": secret, "password": "short"}
    assert lite.client.post("/v1/password", data=form).status_code == 422
    form["password"] = ANOTHER
    answer = lite.client.post("/v1/password", data=form)
    assert "<b>ada</b>" in answer.text
    assert login(lite, ANOTHER).status_code == 201
    assert lite.client.post("/v1/password", data=form).status_code == 401
