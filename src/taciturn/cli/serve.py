"""`taciturn serve`: the gateway, its check, its migrations."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from taciturn.cli import ExitCode
from taciturn.cli.gateway import Answer, answering, json_option
from taciturn.collector import nothing_collected
from taciturn.errors import MissingDependencyError, SpecError

if TYPE_CHECKING:
    from taciturn.server.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded database, files and workspaces.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="postgresql+psycopg://...; with a password, set the variable instead."),
    ] = None,
    storage_url: Annotated[str | None, typer.Option(help="Object store, s3://...")] = None,
    public_url: Annotated[
        str | None, typer.Option(help="Address under which clients reach the gateway.")
    ] = None,
    launcher: Annotated[str | None, typer.Option(help="local or kubernetes.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that serve; by default, one for each core.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check whether the gateway can serve; exit code 1 if not."),
    ] = False,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring the database to this version, and end.")
    ] = False,
    new_admin_token: Annotated[
        bool,
        typer.Option(
            "--new-admin-token",
            help="Print a new administrator's token, if the first one was lost, and end.",
        ),
    ] = False,
    as_json: Annotated[
        bool, json_option("with --check healthy, and findings with what, text and remedy")
    ] = False,
) -> None:
    """Serve the gateway: private data stays here. Each option is also a variable TACITURN_*."""
    if as_json and not check:
        raise SpecError("--json is the form of what --check finds; give --check, too")
    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        database_url=database_url,
        storage_url=storage_url,
        public_url=public_url,
        launcher=launcher,
        processes=processes,
    )
    if check:
        with answering(as_json=as_json) as answer:
            _check(settings, answer)
    elif migrate:
        _migrate(settings)
    elif new_admin_token:
        _recover(settings)
    else:
        _serve(settings)


def _settings(**options: Any) -> Settings:
    """Return the settings of the environment and of the options that are not None."""
    try:
        from pydantic import ValidationError
        from pydantic_settings import SettingsError

        from taciturn.server.settings import Settings
    except ImportError as error:
        raise MissingDependencyError(
            f"the gateway needs {error.name}; install taciturn[server]"
        ) from None
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"TACITURN_{name.upper()}: {first['msg']}; correct it") from None
    except SettingsError as error:
        raise SpecError(f"{error}; write it as JSON") from None


def _serve(settings: Settings) -> None:
    if settings.process_count == 1:
        _serve_on(settings)
        return
    with tempfile.TemporaryDirectory(prefix="taciturn-figures-") as folder:
        # What counts requests decides when it is imported, below, whether processes share figures.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _serve_on(settings)


def _serve_on(settings: Settings) -> None:
    with nothing_collected():
        from taciturn.server.bootstrap import OWN_SIGNING_KEY, open_gateway
        from taciturn.server.preflight import check_launcher
        from taciturn.server.serve import first_admin, serve

    gateway = open_gateway(settings)
    token = first_admin(gateway)
    url = settings.public_url or f"http://{settings.host}:{settings.port}"
    typer.echo(f"taciturn gateway at {url}")
    if token is not None:
        typer.echo(first_token_text(token, url))
    trust = settings.data_dir.absolute() / f"{OWN_SIGNING_KEY}.trust.json"
    if settings.signing_key is None and gateway.settings.signing_key is not None:
        typer.echo(
            f"Certificates of fits are signed with {gateway.settings.signing_key}, made for this "
            f"gateway (TACITURN_SIGNING_KEY names another); who checks them needs {trust}\n"
        )
    launcher = check_launcher(settings)
    if not launcher.fine:
        typer.echo(
            f"No job can run on this machine yet: the launcher {launcher.text}, which are not "
            f"installed; {launcher.remedy}."
        )
    sys.stdout.flush()
    code = serve(gateway)
    if code:
        raise typer.Exit(code)


def first_token_text(token: str, url: str) -> str:
    """Text that a gateway prints once, before anybody can sign in."""
    return (
        "The first administrator's token, shown this once and valid for 7 days:\n"
        f"\n    {token}\n\n"
        f"    taciturn login {url} --token\n"
    )


def _check(settings: Settings, answer: Answer) -> None:
    from taciturn.server.preflight import check

    console = Console(highlight=False)
    table = Table("check", "found", "", title="taciturn serve --check", title_justify="left")
    findings = check(settings)
    for finding in findings:
        table.add_row(finding.what, finding.text, "ok" if finding.fine else "PROBLEM")
    console.print(table)
    for finding in findings:
        if not finding.fine:
            console.print(f"{finding.what}: {finding.remedy}", markup=False, soft_wrap=True)
    healthy = all(finding.fine for finding in findings)
    answer({"healthy": healthy, "findings": findings})
    if not healthy:
        raise typer.Exit(ExitCode.REFUSED)


def _recover(settings: Settings) -> None:
    from taciturn.server.bootstrap import open_gateway
    from taciturn.server.serve import recovered_admin

    token = recovered_admin(open_gateway(settings))
    typer.echo(
        "A token of the user `admin`, shown this once and valid for a day. Those that they had "
        f"before are revoked, and the audit log says so:\n\n    {token}\n"
    )


def _migrate(settings: Settings) -> None:
    from taciturn.server.bootstrap import open_engine
    from taciturn.server.schema import versions

    versions.upgrade(open_engine(settings))
    typer.echo("the database is at the newest revision")
