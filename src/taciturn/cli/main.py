"""`taciturn`: its commands, and how errors reach the screen.

torch is imported by the commands, not by their modules, and only once what was typed has been read:
`--help` and a misspelt field are answered at once, not after the seconds that it takes to import.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

import taciturn
from taciturn._version import __version__
from taciturn.cli import ExitCode, certificate, dataset, jobs, ledger, model, people, terms
from taciturn.cli.audit import audit
from taciturn.cli.demo import demo
from taciturn.cli.doctor import doctor
from taciturn.cli.downstream import downstream
from taciturn.cli.evaluate import evaluate
from taciturn.cli.export import export, push
from taciturn.cli.extract import extract
from taciturn.cli.fit import fit
from taciturn.cli.gateway import say
from taciturn.cli.membership import membership
from taciturn.cli.plan import plan
from taciturn.cli.sample import sample
from taciturn.cli.serve import serve
from taciturn.cli.session import login, logout, password, whoami
from taciturn.cli.synthesize import synthesize
from taciturn.cli.translation.command import import_config
from taciturn.errors import ProcessError, TaciturnError

COMMANDS = (
    *(fit, plan, sample, demo, evaluate, audit, synthesize, downstream, extract, membership),
    *(
        export,
        push,
        import_config,
        serve,
        doctor,
        login,
        logout,
        whoami,
        password,
        terms.budget,
        people.audit_log,
    ),
)
GROUPS = {
    "cert": certificate.app,
    "ledger": ledger.app,
    "dataset": dataset.app,
    "public-data": dataset.public,
    "policy": terms.policy,
    "grant": terms.grant,
    "job": jobs.job,
    "approval": jobs.approval,
    "model": model.app,
    "user": people.user,
    "admin": people.admin,
    "token": people.token,
    "incident": people.incident,
}


class _Group(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it, and the way back that it names is said.

        Caught here: the library would say "Aborted", and drop the way to resume.
        """
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort) as stop:
            if isinstance(stop.__context__, EOFError):  # nobody was there to answer a question
                raise
            if _speaks():
                say(str(stop) or "stopped", style="yellow", error=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    name="taciturn",
    help="Fine-tune language models on private text without making them talk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)
for _command in COMMANDS:
    app.command()(_command)


def main() -> None:
    """Entry point: errors that taciturn raises on purpose become one line and exit code 1."""
    warnings.showwarning = _show_warning
    _write_what_can_be()
    try:
        app()
    except TaciturnError as error:
        if _speaks() or not isinstance(error, ProcessError):
            say(f"error: {error}", style="bold red", error=True)
        sys.exit(ExitCode.REFUSED)
    except TimeoutError as error:
        say(f"error: {error}", style="bold red", error=True)
        sys.exit(ExitCode.REFUSED)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "taciturn"):
            raise
        say(
            f"error: this needs {missing}, which is not installed; install taciturn[engine] for "
            "work on this machine, taciturn[server] for a gateway or a ledger, taciturn[verify] "
            "for certificates",
            style="bold red",
            error=True,
        )
        sys.exit(ExitCode.REFUSED)


def _speaks() -> bool:
    """Return whether this process speaks, of several that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this package in one line; a library's names its place, as ever."""
    if Path(filename).is_relative_to(Path(taciturn.__file__).parent):
        say(f"note: {message}", style="yellow", error=True)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        (file or sys.stderr).write(text)


def _write_what_can_be() -> None:
    """Write "?" for what a terminal cannot show, such as bytes of a file name: no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"taciturn {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    main()
