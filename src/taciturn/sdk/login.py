"""A token for a name and a password, or for a yes in a browser; a password for a link."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from taciturn.errors import (
    AuthenticationError,
    SpecError,
    TooManyRequestsError,
    UnavailableError,
)
from taciturn.sdk.requests import request
from taciturn.sdk.transport import Transport
from taciturn.wire.identity import (
    LinkRedemption,
    Login,
    LoginAnswer,
    LoginRequest,
    LoginState,
    NewLoginRequest,
    NewPassword,
    Redeemed,
    TokenSecret,
)


def password_token(url: str, name: str, password: str) -> str:
    """Log in to the gateway at `url`; raises AuthenticationError, TooManyRequestsError."""
    request(Login, name=name, password=password)
    transport = Transport(url, None)
    try:
        response = transport.send("POST", "login", body={"name": name, "password": password})
        return transport.read(TokenSecret, response).token
    finally:
        transport.close()


def begin_login(url: str, host: str) -> LoginRequest:
    """Ask that somebody who is signed in to the gateway's console lets this program act as them;
    raises GatewayError with status 404 or 405 from a gateway that knows no such requests."""
    new = request(NewLoginRequest, host=host)
    transport = Transport(url, None)
    try:
        return transport.read(LoginRequest, transport.send("POST", "login-requests", body=new))
    finally:
        transport.close()


def wait_for_login(
    url: str, login: LoginRequest, *, sleep: Callable[[float], object] = time.sleep
) -> str:
    """Wait until that person has answered; returns a token.

    Raises:
        AuthenticationError: they said no, or nobody has answered in time.
    """
    transport = Transport(url, None)
    body = {"secret": login.secret}
    try:
        while True:
            sleep(login.interval_s)
            try:
                response = transport.send("POST", "login-requests/answers", body=body)
            except UnavailableError:
                if datetime.now(UTC) > login.expires_at:
                    raise
                continue
            except TooManyRequestsError:
                sleep(login.interval_s)
                continue
            answer = transport.read(LoginAnswer, response)
            if answer.token is not None:
                return answer.token.token
            if answer.state is LoginState.DENIED:
                raise AuthenticationError(
                    "the login was denied in the browser", code="unauthenticated", status=401
                )
    finally:
        transport.close()


def redeem_link(link: str, password: str) -> tuple[str, str]:
    """Set one's own password through a link that an administrator has made; returns the address of
    the gateway and one's name there. Every session and token that one had ends.

    Raises:
        SpecError: not such a link, or too short a password; nothing was sent.
        AuthenticationError: the link was used, replaced by another one, or is over.
    """
    parts = urlsplit(link.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc or not parts.fragment:
        raise SpecError(
            "the link must be whole, https://GATEWAY/v1/password#tac_...; ask an administrator for "
            "another one where part of it was lost"
        )
    request(LinkRedemption, link=parts.fragment, password=password)
    url = f"{parts.scheme}://{parts.netloc}{parts.path.partition('/v1/')[0]}"
    transport = Transport(url, None)
    try:
        body = {"link": parts.fragment, "password": password}
        response = transport.send("POST", "password-links/redemptions", body=body)
        return url, transport.read(Redeemed, response).name
    finally:
        transport.close()


def change_password(transport: Transport, current: str, new: str) -> None:
    """Another password for the holder of the transport's token, who knows the current one. Raises
    AuthenticationError if they don't."""
    request(NewPassword, current=current, new=new)
    transport.send("PUT", "self/password", body={"current": current, "new": new})
