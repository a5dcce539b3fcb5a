"""An OpenID provider, as its discovery document describes it: where to send people, how to trade
their code for an ID token, and whether that token is genuine.

Authorization code with PKCE, state and nonce; asymmetric signatures only.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, KeySetSerialization

from taciturn.server.problems import ProblemError

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
_TIMEOUT_S, _LEEWAY_S, _FRESH_S = 10.0, 60, 3600.0


@dataclass(frozen=True, slots=True)
class Client:
    """What we are to the provider."""

    issuer: str
    client_id: str
    client_secret: str | None
    redirect_uri: str
    scopes: str


class Provider:
    """Talks to the provider; what it says of itself is remembered for an hour."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._described: dict[str, Any] | None = None
        self._keys: KeySet | None = None
        self._read_s = 0.0

    def login_url(self, state: str, nonce: str, verifier: str) -> str:
        """Where a person's browser goes to log in."""
        with self._oauth() as oauth:
            url, _ = oauth.create_authorization_url(
                self._description()["authorization_endpoint"],
                state=state,
                nonce=nonce,
                code_verifier=verifier,
            )
        return str(url)

    def claims(self, code: str, nonce: str, verifier: str) -> dict[str, Any]:
        """What the provider says of who logged in.

        Raises:
            ProblemError: `unauthenticated` if it says nothing genuine, `unavailable` if it cannot
                be reached. The provider's words are not repeated.
        """
        try:
            with self._oauth() as oauth:
                answer = oauth.fetch_token(
                    self._description()["token_endpoint"], code=code, code_verifier=verifier
                )
            return self._verified(answer, nonce)
        except httpx.HTTPError:
            raise _unreachable() from None
        except (OAuthError, JoseError, KeyError, TypeError, ValueError):
            raise ProblemError(
                "unauthenticated", "the login provider's answer is not valid; log in again"
            ) from None

    def _verified(self, answer: dict[str, Any], nonce: str) -> dict[str, Any]:
        token = answer["id_token"]
        try:
            decoded = jwt.decode(token, self._key_set(), algorithms=ALGORITHMS)
        except (JoseError, ValueError):  # the provider may have changed its keys
            decoded = jwt.decode(token, self._key_set(again=True), algorithms=ALGORITHMS)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": self.client.issuer},
                "aud": {"essential": True, "value": self.client.client_id},
            },
            params={
                "nonce": nonce,
                "client_id": self.client.client_id,
                "access_token": answer.get("access_token"),
            },
        )
        claims.validate(now=int(time.time()), leeway=_LEEWAY_S)
        return dict(claims)

    def _oauth(self) -> Any:
        client = self.client
        return OAuth2Client(
            client_id=client.client_id,
            client_secret=client.client_secret,
            scope=client.scopes,
            redirect_uri=client.redirect_uri,
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic" if client.client_secret else "none",
            timeout=_TIMEOUT_S,
        )

    def _description(self) -> dict[str, Any]:
        with self._lock:
            if self._described is None or time.monotonic() - self._read_s > _FRESH_S:
                url = self.client.issuer.rstrip("/") + "/.well-known/openid-configuration"
                found = _fetched(url)
                if found.get("issuer") != self.client.issuer:
                    raise ProblemError(
                        "unavailable", "the login provider has another name than it is known by"
                    )
                self._described, self._keys, self._read_s = found, None, time.monotonic()
            return self._described

    def _key_set(self, *, again: bool = False) -> KeySet:
        url = self._description()["jwks_uri"]
        with self._lock:
            if self._keys is None or again:
                self._keys = KeySet.import_key_set(cast(KeySetSerialization, _fetched(url)))
            return self._keys


def _fetched(url: str) -> dict[str, Any]:
    local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    if not (url.startswith("https://") or local):
        raise ProblemError("unavailable", "the login provider is not reached by https")
    try:
        answer = httpx.get(url, timeout=_TIMEOUT_S).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        raise _unreachable() from None
    if not isinstance(answer, dict):
        raise _unreachable()
    return answer


def _unreachable() -> ProblemError:
    return ProblemError(
        "unavailable", "the login provider cannot be reached; try again later, or use a token"
    )
