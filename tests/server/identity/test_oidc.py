"""Logins through a provider over real HTTP: who is let in, as what, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import RSAKey
from sqlalchemy import Engine, select

from support.gateway import GatewayWorld, bearer
from support.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIdProvider, openid_provider
from taciturn.server.schema.tables import users
from taciturn.wire.identity import Role

ROLES = {"doctors": "practitioner", "board": "owner", "control": "auditor", "it": "admin"}
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()[:43]


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with openid_provider() as running:
        running.person["groups"] = ["doctors", "chess"]
        yield running


@pytest.fixture
def world(lite_engine: Engine, tmp_path: Path, provider: OpenIdProvider) -> GatewayWorld:
    return GatewayWorld.open(
        lite_engine,
        tmp_path,
        public_url="https://testserver",
        oidc_issuer=provider.issuer,
        oidc_client_id=CLIENT_ID,
        oidc_client_secret=CLIENT_SECRET,
        oidc_roles=ROLES,
    )


def begun(world: GatewayWorld, **asked: Any) -> str:
    """Begin a login, and be sent back by the provider; returns the callback with its query."""
    answer = world.client.get("/v1/oidc/login", params=asked, follow_redirects=False)
    assert answer.status_code == 302
    sent_back = httpx.get(answer.headers["Location"]).headers["Location"]
    path = urlsplit(sent_back)
    return f"{path.path}?{path.query}"


def finished(world: GatewayWorld, **asked: Any) -> Any:
    return world.client.get(begun(world, **asked), follow_redirects=False)


def confirmed(world: GatewayWorld, **asked: Any) -> Any:
    """The same for a command line, whose person says yes to the page that asks."""
    page = finished(world, **asked)
    assert page.status_code == 200
    return say_yes(world, page.text)


def say_yes(world: GatewayWorld, page: str, **headers: str) -> Any:
    proof = page.split('name="proof" value="')[1].split('"')[0]
    return world.client.post(
        "/v1/oidc/confirmations", data={"proof": proof}, headers=headers, follow_redirects=False
    )


def test_a_browser_comes_back_with_a_session(world: GatewayWorld) -> None:
    answer = finished(world)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/")
    assert world.client.get("/").status_code == 200
    me = world.client.get("/v1/self").json()
    assert (me["name"], me["roles"]) == ("ada", ["practitioner"])
    assert me["groups"] == ["chess", "doctors"]
    cookies = answer.headers.get_list("set-cookie")
    assert all("Secure" in each for each in cookies)
    assert sum("HttpOnly" in each for each in cookies) == 2  # all but the CSRF header's value


def test_a_command_line_gets_a_code_on_its_port_and_a_token_once(world: GatewayWorld) -> None:
    answer = confirmed(world, challenge=CHALLENGE, port=8765)
    where = urlsplit(answer.headers["Location"])
    assert (where.scheme, where.netloc) == ("http", "127.0.0.1:8765")
    assert "__Host-taciturn" not in world.client.cookies
    code = parse_qs(where.query)["code"][0]
    wrong = {"code": code, "verifier": "w" * 43}
    assert world.client.post("/v1/oidc/tokens", json=wrong).status_code == 401
    body = {"code": code, "verifier": VERIFIER}
    token = world.client.post("/v1/oidc/tokens", json=body).json()["token"]
    assert world.client.get("/v1/self", headers=bearer(token)).json()["name"] == "ada"
    assert world.client.post("/v1/oidc/tokens", json=body).status_code == 401


@pytest.mark.parametrize("port", [{}, {"port": 8765}])
def test_no_command_line_gets_a_code_before_the_person_says_yes(
    world: GatewayWorld, port: dict[str, int]
) -> None:
    """Any page can lead a browser that is logged in at the provider here, with a challenge whose
    verifier its maker has, and any program of the machine can listen."""
    page = finished(world, challenge=CHALLENGE, **port)
    assert page.status_code == 200
    assert "Location" not in page.headers
    assert "code=" not in page.text
    assert CHALLENGE[:8] in page.text
    assert "ada" in page.text
    allowed = f"form-action 'self'{' http://127.0.0.1:8765' if port else ''}"
    assert allowed in page.headers["content-security-policy"]
    evil = say_yes(world, page.text, Origin="https://evil.example")
    assert (evil.status_code, evil.json()["code"]) == (403, "csrf")
    forged = world.client.post("/v1/oidc/confirmations", data={"proof": "0" * 64})
    assert forged.status_code == 401
    kept = dict(world.client.cookies)
    world.client.cookies.clear()
    assert say_yes(world, page.text).status_code == 401  # another browser
    world.client.cookies.update(kept)
    world.clock.forward(seconds=601)
    assert say_yes(world, page.text).status_code == 401


def test_a_question_is_no_code_and_no_login(world: GatewayWorld) -> None:
    finished(world, challenge=CHALLENGE)
    question = world.client.cookies["taciturn-oidc"]
    body = {"code": question, "verifier": VERIFIER}
    assert world.client.post("/v1/oidc/tokens", json=body).status_code == 401
    assert world.client.get("/v1/oidc/callback?state=x&code=y").status_code == 401


def test_a_command_line_elsewhere_is_shown_its_code(world: GatewayWorld) -> None:
    page = confirmed(world, challenge=CHALLENGE)
    code = page.text.split("<pre>")[1].split("</pre>")[0]
    world.clock.forward(seconds=119)
    body = {"code": code, "verifier": VERIFIER}
    assert world.client.post("/v1/oidc/tokens", json=body).status_code == 201


def test_a_code_is_over_after_two_minutes(world: GatewayWorld) -> None:
    page = confirmed(world, challenge=CHALLENGE)
    code = page.text.split("<pre>")[1].split("</pre>")[0]
    world.clock.forward(seconds=122)
    refused = world.client.post("/v1/oidc/tokens", json={"code": code, "verifier": VERIFIER})
    assert refused.status_code == 401


def test_what_is_sealed_for_one_purpose_serves_no_other(world: GatewayWorld) -> None:
    world.client.get("/v1/oidc/login", follow_redirects=False)
    flow = world.client.cookies["taciturn-oidc"]
    refused = world.client.post("/v1/oidc/tokens", json={"code": flow, "verifier": VERIFIER})
    assert refused.status_code == 401


def test_a_browser_cannot_read_the_secrets_of_its_login(world: GatewayWorld) -> None:
    """In authlib's own client for Starlette it can: there they are signed, and not sealed."""
    answer = world.client.get("/v1/oidc/login", follow_redirects=False)
    (state,) = parse_qs(urlsplit(answer.headers["Location"]).query)["state"]
    cookie = world.client.cookies["taciturn-oidc"]
    decoded = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
    assert not any(secret in decoded for secret in (state.encode(), b"verifier", b"nonce"))


def spoiled(**claims: Any) -> Callable[[OpenIdProvider], None]:
    return lambda provider: provider.spoil.update(claims)


def another_key(provider: OpenIdProvider) -> None:
    provider.signing_key = RSAKey.generate_key(2048, {"kid": "one"})


def symmetric(provider: OpenIdProvider) -> None:
    """Signed with the public key as if it were a shared secret."""
    key = provider.published_key.as_pem(private=False)

    def id_token(asked: dict[str, str]) -> str:
        text = _part({"alg": "HS256", "kid": "one"}) + "." + _part(_claims(provider, asked))
        return f"{text}.{_base64(hmac.digest(key, text.encode(), 'sha256'))}"

    provider._id_token = id_token  # type: ignore[method-assign]


def unsigned(provider: OpenIdProvider) -> None:
    provider._id_token = lambda asked: (  # type: ignore[method-assign]
        f"{_part({'alg': 'none'})}.{_part(_claims(provider, asked))}."
    )


def _part(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _claims(provider: OpenIdProvider, asked: dict[str, str]) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": provider.issuer,
        "aud": CLIENT_ID,
        "iat": now,
        "exp": now + 300,
        "nonce": asked["nonce"],
        **provider.person,
    }


FORGERIES: dict[str, Callable[[OpenIdProvider], None]] = {
    "another nonce": spoiled(nonce="another"),
    "no nonce": spoiled(nonce=None),
    "for another client": spoiled(aud="another"),
    "authorised party is another": spoiled(aud=[CLIENT_ID, "another"], azp="another"),
    "from another issuer": spoiled(iss="https://another.example"),
    "expired": spoiled(exp=int(time.time()) - 3600),
    "without expiry": spoiled(exp=None),
    "without subject": spoiled(sub=None),
    "signed by another key": another_key,
    "signed with the public key": symmetric,
    "not signed": unsigned,
    "PKCE is broken": lambda provider: (
        [each.update(code_challenge="x") for each in provider.codes.values()] and None
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_answer_lets_nobody_in(
    world: GatewayWorld, provider: OpenIdProvider, forgery: str
) -> None:
    where = begun(world)
    FORGERIES[forgery](provider)
    refused = world.client.get(where, follow_redirects=False)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    assert people(world) == []
    assert "set-cookie" not in refused.headers


def people(world: GatewayWorld) -> list[str]:
    query = select(users.c.name)
    return list(world.gateway.read(lambda connection: connection.execute(query).scalars().all()))


def test_a_login_is_finished_by_the_browser_that_began_it(world: GatewayWorld) -> None:
    """Else an attacker's login could be finished in a victim's browser."""
    where = begun(world)
    kept = world.client.cookies["taciturn-oidc"]
    world.client.cookies.clear()
    assert world.client.get(where, follow_redirects=False).status_code == 401
    finishing = begun(world)
    world.client.cookies.clear()
    world.client.cookies.set("taciturn-oidc", kept)
    assert world.client.get(finishing, follow_redirects=False).status_code == 401
    assert people(world) == []


def test_a_login_is_over_after_ten_minutes_and_a_providers_code_serves_once(
    world: GatewayWorld,
) -> None:
    where = begun(world)
    kept = world.client.cookies["taciturn-oidc"]
    assert world.client.get(where, follow_redirects=False).status_code == 302
    world.client.cookies.set("taciturn-oidc", kept)
    assert world.client.get(where, follow_redirects=False).status_code == 401
    where = begun(world)
    world.clock.forward(seconds=601)
    assert world.client.get(where, follow_redirects=False).status_code == 401


def test_the_provider_says_no(world: GatewayWorld) -> None:
    refused = world.client.get("/v1/oidc/callback?state=x&error=access_denied")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("person", "status", "code"),
    [
        ({"groups": ["chess"]}, 403, "forbidden"),
        ({"groups": []}, 403, "forbidden"),
        ({"groups": None}, 403, "forbidden"),
        ({"groups": "doctors"}, 403, "forbidden"),
        ({"groups": ["doctors", "control"]}, 403, "separation_of_duty"),
        ({"preferred_username": "a b"}, 403, "forbidden"),
        ({"preferred_username": None}, 403, "forbidden"),
        ({"preferred_username": "root"}, 409, "conflict"),
    ],
    ids=str,
)
def test_who_has_no_place_here_is_not_let_in(
    world: GatewayWorld, provider: OpenIdProvider, person: dict[str, Any], status: int, code: str
) -> None:
    world.person("root", Role.ADMIN)
    provider.person.update(person)
    refused = finished(world)
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert people(world) == ["root"]


def test_roles_and_groups_follow_the_provider(
    world: GatewayWorld, provider: OpenIdProvider
) -> None:
    finished(world)
    provider.person.update(groups=["board"], preferred_username="renamed")
    finished(world)
    me = world.client.get("/v1/self").json()
    assert (me["name"], me["roles"], me["groups"]) == ("ada", ["owner"], ["board"])
    provider.person.update(groups=["chess"])
    assert finished(world).status_code == 403


@pytest.mark.parametrize(
    ("claims", "address"),
    [
        ({"email": "ada@hospital.example", "email_verified": True}, "ada@hospital.example"),
        ({"email": "ada@hospital.example", "email_verified": False}, None),
        ({"email": "ada@hospital.example", "email_verified": "true"}, None),
        ({"email": "ada@hospital.example"}, None),
        ({"email": "a@b.example\r\nBcc: c@d.example", "email_verified": True}, None),
    ],
)
def test_an_address_that_the_provider_vouches_for_is_taken_over(
    world: GatewayWorld, provider: OpenIdProvider, claims: dict[str, Any], address: str | None
) -> None:
    provider.person |= claims
    finished(world)
    assert world.client.get("/v1/notifications").json()["address"] == address


def test_another_subject_of_the_same_name_is_somebody_else(
    world: GatewayWorld, provider: OpenIdProvider
) -> None:
    finished(world)
    provider.person["sub"] = "2"
    assert finished(world).json()["code"] == "conflict"


def test_who_is_locked_out_stays_out(world: GatewayWorld) -> None:
    finished(world)
    root = world.person("root", Role.ADMIN)
    world.client.patch("/v1/users/ada", headers=root, json={"disabled": True})
    assert finished(world).status_code == 403


def test_the_last_administrator_is_not_taken_away_by_a_login(
    world: GatewayWorld, provider: OpenIdProvider
) -> None:
    provider.person["groups"] = ["it"]
    finished(world)
    provider.person["groups"] = ["doctors"]
    assert finished(world).json()["code"] == "conflict"
    world.person("root", Role.ADMIN)
    assert finished(world).status_code == 302


def test_new_keys_of_the_provider_are_fetched(
    world: GatewayWorld, provider: OpenIdProvider
) -> None:
    finished(world)
    provider.signing_key = provider.published_key = RSAKey.generate_key(2048, {"kid": "one"})
    assert finished(world).status_code == 302
    assert provider.requests.count("/keys") == 2
    assert provider.requests.count("/.well-known/openid-configuration") == 1


def test_a_discovery_document_cannot_weaken_a_login(
    world: GatewayWorld, provider: OpenIdProvider
) -> None:
    """PKCE, the check of certificates and the algorithms are this gateway's own."""
    document = provider.description() | {
        "code_challenge_method": None,
        "verify": False,
        "id_token_signing_alg_values_supported": ["HS256", "none"],
    }
    provider.description = lambda: document  # type: ignore[method-assign]
    where = begun(world)  # the provider asserts that there is a challenge
    symmetric(provider)
    assert world.client.get(where, follow_redirects=False).status_code == 401
    assert people(world) == []


@pytest.mark.parametrize("endpoint", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
@pytest.mark.parametrize("url", ["http://provider.example/x", None])
def test_every_address_of_a_provider_is_https(
    world: GatewayWorld, provider: OpenIdProvider, endpoint: str, url: str | None
) -> None:
    document = provider.description() | {endpoint: url}
    provider.description = lambda: document  # type: ignore[method-assign]
    refused = world.client.get("/v1/oidc/login", follow_redirects=False)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")


@pytest.mark.parametrize("endpoint", ["token_endpoint", "jwks_uri"])
def test_a_provider_that_goes_down_during_a_login_is_said_to_be(
    world: GatewayWorld, provider: OpenIdProvider, endpoint: str
) -> None:
    document = provider.description() | {endpoint: "http://127.0.0.1:1/nobody"}
    provider.description = lambda: document  # type: ignore[method-assign]
    refused = finished(world)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")


def test_a_provider_that_is_down_is_said_to_be(
    world: GatewayWorld, provider: OpenIdProvider
) -> None:
    provider.issuer = "https://another.example"
    refused = world.client.get("/v1/oidc/login", follow_redirects=False)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")


def test_without_a_provider_there_is_no_such_login(lite: GatewayWorld) -> None:
    assert lite.client.get("/v1/oidc/login").json()["code"] == "not_found"
