"""A token for a name and a password."""

from __future__ import annotations

from taciturn.sdk.requests import asked, request
from taciturn.sdk.transport import Transport
from taciturn.wire.identity import Login, TokenSecret


def password_token(url: str, name: str, password: str) -> str:
    """Log in to the gateway at `url`; raises AuthenticationError, TooManyRequestsError."""
    login = request(Login, name=name, password=password)
    transport = Transport(url, None)
    try:
        # A secret's JSON is stars; here it has to travel.
        response = transport.send("POST", "login", body={**asked(login), "password": password})
        return transport.read(TokenSecret, response).token
    finally:
        transport.close()
