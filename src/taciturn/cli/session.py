"""`taciturn login`, `logout`, `whoami` and `password`: which gateway, and as whom."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from taciturn.cli.gateway import Json, connected, say, show_value
from taciturn.errors import SpecError

if TYPE_CHECKING:
    from taciturn.wire.identity import PasswordLinkView


PasswordStdin = Annotated[
    bool,
    typer.Option("--password-stdin", help="Read the password from standard input, not the screen."),
]


def login(
    url: Annotated[str, typer.Argument(help="Address of the gateway.")],
    name: Annotated[str | None, typer.Option(help="Log in with a password, as this user.")] = None,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read a token from standard input.")
    ] = False,
    password_stdin: PasswordStdin = False,
    ask_token: Annotated[
        bool, typer.Option("--token", help="Ask for a token that you have already.")
    ] = False,
) -> None:
    """Keep a token for a gateway in your home folder; without options, you allow it in a browser
    where you are signed in."""
    from taciturn.sdk.client import Client
    from taciturn.sdk.credentials import Credentials, keep_credentials
    from taciturn.sdk.login import password_token

    if (name is not None) + token_stdin + ask_token > 1:
        raise SpecError("--name, --token and --token-stdin exclude each other; give one")
    if password_stdin and name is None:
        raise SpecError("--password-stdin is for --name; give the name, or --token-stdin")
    if name is not None:
        secret = _line() if password_stdin else typer.prompt("password", hide_input=True)
        token = password_token(url, name, secret)
    elif token_stdin:
        token = _line().strip()
    elif ask_token:
        token = typer.prompt("token", hide_input=True).strip()
    else:
        token = _browser_token(url)
    revocable = not (token_stdin or ask_token)  # made for this login, so logging out revokes it
    with Client(url, token) as client:
        person = client.whoami()
        path = keep_credentials(Credentials(client.url, token, person.name, revocable))
    say(f"logged in to {client.url} as {person.name} ({', '.join(person.roles)})")
    say(f"the token is in {path}, for you alone")
    for link in person.password_links:
        _tell(link)


def _browser_token(url: str) -> str:
    """Return a token that somebody has allowed in a browser."""
    import platform

    from taciturn.errors import GatewayError
    from taciturn.sdk.login import begin_login, wait_for_login

    try:
        request = begin_login(url, platform.node() or "a machine without a name")
    except GatewayError as error:
        if error.status not in (404, 405):
            raise
        raise SpecError(
            f"the gateway at {url} has no login through the browser; use --name NAME for a "
            "password, or --token"
        ) from None
    say(f"open {request.url}")
    say(f"and allow it there if it shows the code {request.code}")
    if request.url.startswith(("https://", "http://")) and _has_browser():
        typer.launch(request.url)
    return wait_for_login(url, request)


def _has_browser() -> bool:
    """Return True where a person sits in front of a screen on which a browser can open."""
    if not sys.stdout.isatty():
        return False
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform != "linux" or any(os.environ.get(name) for name in screens)


def logout() -> None:
    """Forget the kept token; one that this login has made is revoked, too."""
    from taciturn.errors import GatewayError
    from taciturn.sdk.client import Client
    from taciturn.sdk.credentials import forget_credentials, read_credentials

    stored = read_credentials()
    if stored is not None and stored.ours:
        try:
            with Client(stored.url, stored.token) as client:
                client.transport.send("POST", "logout")
        except GatewayError as error:
            say(f"the token could not be revoked: {error}", style="yellow")
    say("logged out" if forget_credentials() else "was not logged in")


def whoami(as_json: Json = False) -> None:
    """Show who the gateway takes you for, and what you may do."""
    with connected() as client:
        show_value(client.whoami(), as_json=as_json)


def password(
    link: Annotated[
        str | None,
        typer.Argument(help="Link that an administrator has given you; `-` asks for it."),
    ] = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Set your password: through a link, or as who you are logged in, by the current one.

    With --password-stdin: a line with the new password; without a link, first one with the current
    one. A link is a secret until it is used: `-` keeps it out of your shell's history.
    """
    from taciturn.sdk.login import redeem_link

    if link is not None:
        if link == "-":
            link = _line() if password_stdin else typer.prompt("link", hide_input=True)
        url, name = redeem_link(link, _new_password(password_stdin))
        say(f"your password is set; log in: taciturn login {url} --name {name}")
        return
    current = _line() if password_stdin else typer.prompt("current password", hide_input=True)
    with connected() as client:
        client.change_password(current, _new_password(password_stdin))
    say("your password is changed, and every other token and session of yours has ended")


def _new_password(from_stdin: bool) -> str:
    if from_stdin:
        return _line()
    entry: str = typer.prompt("new password", hide_input=True, confirmation_prompt=True)
    return entry


def _line() -> str:
    """A line of standard input, without its end; raises SpecError where there is none."""
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise SpecError("standard input had no line left for the secret; give one line for each")
    return line


def _tell(link: PasswordLinkView) -> None:
    """Warn that somebody has made a link for one's own password."""
    used = "not used"
    if link.redeemed_at is not None:
        used = f"used {link.redeemed_at:%Y-%m-%d %H:%M} UTC from {link.address}"
    say(
        f"{link.made_by} made a link for your password at {link.created_at:%Y-%m-%d %H:%M} UTC "
        f"({used}); if you did not ask for it, tell an auditor",
        style="yellow",
    )
