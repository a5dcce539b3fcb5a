"""`taciturn login`, `logout` and `whoami`: which gateway, and as whom."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from taciturn.cli.gateway import Json, connected, say, show_value
from taciturn.errors import SpecError


def login(
    url: Annotated[str, typer.Argument(help="Address of the gateway.")],
    name: Annotated[str | None, typer.Option(help="Log in with a password, as this user.")] = None,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read a token from standard input.")
    ] = False,
) -> None:
    """Keep a token for a gateway in your home folder; without options, ask for one."""
    from taciturn.sdk.client import Client
    from taciturn.sdk.credentials import Credentials, keep_credentials
    from taciturn.sdk.login import password_token

    if name is not None and token_stdin:
        raise SpecError("--name and --token-stdin exclude each other; give one")
    if name is not None:
        token = password_token(url, name, typer.prompt("password", hide_input=True))
    elif token_stdin:
        token = sys.stdin.readline().strip()
    else:
        token = typer.prompt("token", hide_input=True).strip()
    with Client(url, token) as client:
        found = client.whoami()
        path = keep_credentials(Credentials(client.url, token, found.name, name is not None))
    say(f"logged in to {client.url} as {found.name} ({', '.join(found.roles)})")
    say(f"the token is in {path}, for you alone")


def logout() -> None:
    """Forget the kept token; one that was made by a password is revoked, too."""
    from taciturn.errors import GatewayError
    from taciturn.sdk.client import Client
    from taciturn.sdk.credentials import forget_credentials, read_credentials

    kept = read_credentials()
    if kept is not None and kept.ours:
        try:
            with Client(kept.url, kept.token) as client:
                client.transport.send("POST", "logout")
        except GatewayError as error:
            say(f"the token could not be revoked: {error}", style="yellow")
    say("logged out" if forget_credentials() else "was not logged in")


def whoami(as_json: Json = False) -> None:
    """Show who the gateway takes you for, and what you may do."""
    with connected() as client:
        show_value(client.whoami(), as_json=as_json)
