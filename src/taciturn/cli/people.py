"""`taciturn user`, `token`, `incident`, `admin` and `audit-log`: people and what they did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taciturn.cli.gateway import Json, connected, group, say, show, show_rows, show_value
from taciturn.cli.options import moment_of
from taciturn.data.filesystem import appearing_at_once, check_output_file

if TYPE_CHECKING:
    from taciturn.wire.identity import PasswordLink

user = group("People, for administrators.")
admin = group("A gateway's upkeep, for administrators.")
token = group("Your own tokens.")
incident = group("Failures, for the data's owner.")

_LINES = 100
_COLUMNS = ("at", "actor", "action", "resource", "status", "code", "address", "token", "request_id")

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
Link = Annotated[
    bool,
    typer.Option(
        "--link",
        help="Print a link through which they set their own password; without, they log in by "
        "OIDC.",
    ),
]


@user.command("add")
def add_user(
    name: Name, role: Roles, group: Groups = None, source: Sources = None, link: Link = False
) -> None:
    """Let a person in."""
    with connected() as client:
        person = client.admin.add_user(name, role, groups=group or (), sources=source or ())
        say(f"{person.name}: {', '.join(person.roles)}")
        if link:
            _print_link(client.admin.password_link(name))


@user.command("link")
def link_user(name: Name) -> None:
    """Print a link through which a person sets their own password: to be handed to them alone."""
    with connected() as client:
        _print_link(client.admin.password_link(name))


@user.command("list")
def list_users(as_json: Json = False) -> None:
    """List everybody."""
    with connected() as client:
        show(client.admin.users(), as_json=as_json)


@user.command("change")
def change_user(
    name: Name,
    role: Annotated[
        list[str] | None, typer.Option("--role", help="Roles from now on; repeatable.")
    ] = None,
    group: Groups = None,
    source: Sources = None,
    no_source: Annotated[
        bool,
        typer.Option(
            "--no-source", help="Take the person's own sources away; those of every owner stay."
        ),
    ] = False,
    disabled: Annotated[
        bool | None,
        typer.Option("--disable/--enable", help="Shut the person out, or let them in again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change roles, groups or sources, or shut a person out; `taciturn user link` is for passwords.
    Groups and sources that are given are all from now on."""
    sources = [] if no_source else source
    options = {"roles": role, "groups": group, "disabled": disabled, "sources": sources}
    changes = {field: value for field, value in options.items() if value is not None}
    with connected() as client:
        show_value(client.admin.change_user(name, **changes), as_json=as_json)


@token.command("add")
def add_token(
    name: Annotated[str, typer.Argument(help="Purpose of the token.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Action that the token allows, such as jobs:create; by default all of yours."
        ),
    ] = None,
    days: Annotated[int, typer.Option(help="Days after which the token ends.")] = 30,
) -> None:
    """Make a token; it is printed this once, alone on its line."""
    with connected() as client:
        secret = client.admin.add_token(name, scopes=scope or (), expires_in_days=days)
        typer.echo(secret.token)


@token.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List your tokens, newest first, without their secrets."""
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


@admin.command("prune")
def prune(as_json: Json = False) -> None:
    """Remove now what the gateway's settings say is over: incidents, exported audit log rows."""
    with connected() as client:
        terms, result = client.admin.retention(), client.admin.prune()
        if as_json:
            show_value(result, as_json=True)
            return
        for export in result.exports:
            say(
                f"audit log {export.first_entry}-{export.last_entry}: exported, then removed "
                f"({export.entries} entries, sha256 {export.sha256})"
            )
        if terms.audit_log_days is None:
            say("audit log: kept for ever; TACITURN_AUDIT_LOG_DAYS says otherwise")
        elif not result.exports:
            say(f"audit log: nothing is older than {terms.audit_log_days} days")
        say(f"incidents older than {terms.incident_days} days: {result.incidents} removed")


def audit_log(
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            "--actor",
            help="Only what this person did; or anyone as the log has them: user:ada, anonymous.",
        ),
    ] = None,
    action: Annotated[str | None, typer.Option(help="Only this action: datasets:read.")] = None,
    since: Annotated[
        str | None, typer.Option(help="2026-03-01, 2026-03-01T12:30Z, or 90m, 12h, 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this moment; as --since.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Lines at most. [default: 100; a file has all]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a new file of JSONL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show who did what, newest first; for auditors."""
    if output is not None:
        check_output_file(output)
    with connected() as client:
        entries = client.auditor.audit_log(
            actor=user if user is None or ":" in user or user == "anonymous" else f"user:{user}",
            action=action,
            since=moment_of("since", since),
            until=moment_of("until", until),
        )
        if output is not None:
            _export(islice(entries, limit), output)
            return
        rows = islice(entries, limit or _LINES)
        if as_json:
            for row in rows:
                typer.echo(json.dumps(row, ensure_ascii=False))
            return
        show_rows(_COLUMNS, [[_cell(row.get(name)) for name in _COLUMNS] for row in rows])


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _export(rows: Iterator[dict[str, Any]], output: Path) -> None:
    """Lines of JSON in a file that is whole or not there."""
    count = 0
    with appearing_at_once(output) as partial, partial.open("x", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    say(f"{output}: {count} record(s)")


def _print_link(link: PasswordLink) -> None:
    """The link alone on its line, so that it can be passed on as it is."""
    typer.echo(link.url)
    say(
        f"for {link.name} alone, once, until {link.expires_at:%Y-%m-%d %H:%M} UTC; that you have "
        "made it is shown to them and to auditors"
    )
