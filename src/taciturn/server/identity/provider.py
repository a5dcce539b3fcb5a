"""OpenID provider, as its discovery document describes it: the page to send people to, the trade of
their code for an ID token, and the check that the token is genuine.

Authorization code with PKCE, state and nonce; asymmetric signatures only. Discovery, keys and
claims are authlib's. Its client for Starlette is not used: that one keeps nonce and verifier of a
login readable in a cookie, for as long as the browser keeps it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
from authlib.integrations.base_client import BaseApp, OAuth2Mixin, OAuthError, OpenIDMixin
from authlib.integrations.httpx_client import OAuth2Client
from joserfc.errors import JoseError

from taciturn.server.problems import ProblemError

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
_TIMEOUT_S, _LEEWAY_S, _FRESH_S = 10.0, 60, 3600.0
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_HTTP_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError,)
try:
    import httpx2
except ImportError:
    pass
else:  # authlib's client is made of it where it is installed
    _HTTP_ERRORS = (httpx.HTTPError, httpx2.HTTPError)
_UNREADABLE: tuple[type[Exception], ...] = (*_HTTP_ERRORS, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Client:
    """This gateway, as a client of the provider."""

    issuer: str
    client_id: str
    client_secret: str | None
    redirect_uri: str
    scopes: str


class Provider(OAuth2Mixin, OpenIDMixin, BaseApp):  # type: ignore[misc]
    """Talks to the provider; its discovery document is remembered for an hour."""

    client_cls = OAuth2Client

    def __init__(self, client: Client) -> None:
        super().__init__(
            framework=None,
            client_id=client.client_id,
            client_secret=client.client_secret,
            server_metadata_url=client.issuer.rstrip("/") + "/.well-known/openid-configuration",
            client_kwargs={
                "scope": client.scopes,
                "redirect_uri": client.redirect_uri,
                "code_challenge_method": "S256",
                "token_endpoint_auth_method": (
                    "client_secret_basic" if client.client_secret else "none"
                ),
                "timeout": _TIMEOUT_S,
            },
        )
        self.client = client
        self._lock = threading.Lock()
        self._read_s: float | None = None

    def login_url(self, state: str, nonce: str, verifier: str) -> str:
        """Return the address that a person's browser goes to, to log in."""
        request = self.create_authorization_url(state=state, nonce=nonce, code_verifier=verifier)
        return str(request["url"])

    def claims(self, code: str, nonce: str, verifier: str) -> dict[str, Any]:
        """Return what the provider says of the person who logged in.

        Raises:
            ProblemError: `unauthenticated` if it says nothing genuine, `unavailable` if it cannot
                be reached. The provider's words are not repeated.
        """
        try:
            answer = self.fetch_access_token(code=code, code_verifier=verifier)
            return self._verified(answer, nonce)
        except _HTTP_ERRORS:
            raise _unreachable() from None
        except (OAuthError, JoseError, KeyError, TypeError, ValueError):
            raise ProblemError(
                "unauthenticated", "the login provider's answer is not valid; log in again"
            ) from None

    def _verified(self, answer: dict[str, Any], nonce: str) -> dict[str, Any]:
        claims = partial(
            self.parse_id_token,
            {"id_token": answer["id_token"], "access_token": answer.get("access_token")},
            nonce,
            claims_options={
                "iss": {"essential": True, "value": self.client.issuer},
                "aud": {"essential": True, "value": self.client.client_id},
            },
            leeway=_LEEWAY_S,
        )
        try:
            return dict(claims())
        except (JoseError, ValueError):  # the provider may have changed its keys
            self.fetch_jwk_set(force=True)
            return dict(claims())

    def load_server_metadata(self) -> dict[str, Any]:
        """Return the part of the discovery document that is used.

        No more of it reaches authlib's client, which would take its own options from there, such as
        `verify` and `code_challenge_method`.
        """
        with self._lock:
            now_s = time.monotonic()
            if self._read_s is None or now_s - self._read_s > _FRESH_S:
                self.server_metadata, self._read_s = self._discovered(), now_s
            metadata: dict[str, Any] = self.server_metadata
            return metadata

    def _discovered(self) -> dict[str, Any]:
        _check_https(self._server_metadata_url)
        self.server_metadata = {}
        try:
            document = super().load_server_metadata()
        except _UNREADABLE:
            raise _unreachable() from None
        if document.get("issuer") != self.client.issuer:
            raise ProblemError(
                "unavailable", "the login provider has another name than it is known by"
            )
        endpoints = {name: str(document.get(name, "")) for name in _ENDPOINTS}
        for url in endpoints.values():
            _check_https(url)
        return {**endpoints, "id_token_signing_alg_values_supported": ALGORITHMS}


def _check_https(url: str) -> None:
    local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    if not (url.startswith("https://") or local):
        raise ProblemError("unavailable", "the login provider is not reached by https")


def _unreachable() -> ProblemError:
    return ProblemError(
        "unavailable", "the login provider cannot be reached; try again later, or use a token"
    )
