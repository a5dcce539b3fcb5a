"""`taciturn user`, `token`, `incident` and `audit-log`: for administrators, owners and auditors."""

from __future__ import annotations

import json
from itertools import islice
from typing import Annotated

import typer

from taciturn.cli.gateway import Json, connected, group, say, show, show_value

user = group("People, for administrators.")
token = group("Your own tokens.")
incident = group("Failures, for the data's owner.")

Name = Annotated[str, typer.Argument(help="Name of the person.")]
Roles = Annotated[
    list[str], typer.Option("--role", help="admin, owner, practitioner or auditor; repeatable.")
]
Groups = Annotated[list[str] | None, typer.Option("--group", help="Repeatable.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        help="Folder or URL where an owner may register data, such as s3://hospital/; repeatable.",
    ),
]
AskPassword = Annotated[
    bool, typer.Option("--password", help="Ask for a password; without, they log in by OIDC.")
]


@user.command("add")
def add_user(
    name: Name,
    role: Roles,
    group: Groups = None,
    source: Sources = None,
    password: AskPassword = False,
) -> None:
    """Let a person in."""
    secret = _asked() if password else None
    with connected() as client:
        made = client.admin.add_user(
            name, role, groups=group or (), password=secret, sources=source or ()
        )
        say(f"{made.name}: {', '.join(made.roles)}")


@user.command("list")
def list_users(as_json: Json = False) -> None:
    """List everybody."""
    with connected() as client:
        show(client.admin.users(), as_json=as_json)


@user.command("change")
def change_user(
    name: Name,
    role: Annotated[list[str] | None, typer.Option("--role", help="All roles from now on.")] = None,
    group: Groups = None,
    source: Sources = None,
    no_source: Annotated[
        bool, typer.Option("--no-source", help="Nowhere but where every owner may.")
    ] = False,
    disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Shut out, or let in again.")
    ] = None,
    password: AskPassword = False,
) -> None:
    """Change roles, groups, sources, password, or shut a person out. Groups and sources that are
    given are all from now on."""
    sources = [] if no_source else source
    given = {"roles": role, "groups": group, "disabled": disabled, "sources": sources}
    changes = {field: value for field, value in given.items() if value is not None}
    secret = _asked() if password else None
    with connected() as client:
        show_value(client.admin.change_user(name, password=secret, **changes), as_json=False)


@token.command("add")
def add_token(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="Action such as jobs:create; without: all of yours.")
    ] = None,
    days: Annotated[int, typer.Option(help="After which it ends.")] = 30,
) -> None:
    """Make a token; it is printed this once, alone on its line."""
    with connected() as client:
        made = client.admin.add_token(name, scopes=scope or (), expires_in_days=days)
        typer.echo(made.token)


@token.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List your tokens, without their secrets."""
    with connected() as client:
        show(client.admin.tokens(), as_json=as_json)


@token.command("revoke")
def revoke_token(id: Annotated[str, typer.Argument(help="Id of the token.")]) -> None:
    """Make a token worthless, at once."""
    with connected() as client:
        client.admin.revoke_token(id)
        say(f"{id}: revoked")


@incident.command("show")
def show_incident(id: Annotated[str, typer.Argument(help="As the failed job names it.")]) -> None:
    """Print the full log of a failure. It may quote rows: do not pass it on."""
    with connected() as client:
        typer.echo(client.incident(id))


def audit_log(
    actor: Annotated[str | None, typer.Option(help="Only what this person did.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action.")] = None,
    limit: Annotated[int, typer.Option(help="Lines at most.")] = 100,
) -> None:
    """Print who did what, newest first, as lines of JSON; for auditors."""
    with connected() as client:
        for row in islice(client.auditor.audit_log(actor=actor, action=action), limit):
            typer.echo(json.dumps(row, ensure_ascii=False))


def _asked() -> str:
    secret: str = typer.prompt("password", hide_input=True, confirmation_prompt=True)
    return secret
