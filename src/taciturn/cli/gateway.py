"""What the commands that talk to a gateway share: the connection, tables, Ctrl-C."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taciturn.errors import SpecError
from taciturn.spec import GATEWAY

if TYPE_CHECKING:
    from taciturn.sdk.client import Client
    from taciturn.sdk.dataset import RemoteDataset
    from taciturn.sdk.listing import Listing

_ID = re.compile(r"[a-z]{2,8}_[0-9a-z]{16,32}")
_NARROWEST = 12
"""Columns that are not ids keep so many characters on a line, or as many as they have."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def group(help_text: str) -> typer.Typer:
    """A group of commands such as `taciturn dataset ...`."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


@contextmanager
def connected() -> Iterator[Client]:
    """The gateway of `taciturn login`, or of TACITURN_URL and TACITURN_TOKEN.

    Ctrl-C ends the command and not what runs at the gateway, and says how to come back.
    """
    from taciturn.sdk.client import Client

    with Client() as client:
        try:
            yield client
        except KeyboardInterrupt as stop:
            # Said here: the command-line library would say "Aborted" and drop the way back.
            Console(stderr=True).print(str(stop) or "stopped", style="yellow", markup=False)
            sys.exit(130)


def is_remote(text: object) -> bool:
    """Whether a dataset's or model's text is that of a gateway's."""
    return isinstance(text, str) and text.startswith(GATEWAY)


def named_dataset(client: Client, text: str, select: str | None) -> RemoteDataset:
    """The dataset of `gateway:NAME`, prepared; raises SpecError for another text."""
    if not is_remote(text):
        raise SpecError(f"data {text} is not behind the gateway; name it as {GATEWAY}NAME")
    data = client.dataset(text.removeprefix(GATEWAY))
    return data if select is None else data.select(select)


def say(line: str, style: str | None = None) -> None:
    """One line, not wrapped, not interpreted."""
    _console().print(line, style=style, markup=False, soft_wrap=True)


def show(listing: Listing[Any], *, as_json: bool) -> None:
    """A list as people read it; for programs as lines of JSON, or off a terminal as TSV."""
    if as_json:
        for value in listing:
            typer.echo(value.model_dump_json())
    elif on_terminal():
        show_rows([name.replace("_", " ") for name in listing.columns()], listing.rows())
    else:
        show_rows(*listing.plain())


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows as a table. Where one would have to be cut to fit the terminal, one field a line; off a
    terminal as TSV, below a line with the columns' names."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not on_terminal():
        for row in [columns, *rows] if rows else []:
            typer.echo("\t".join(row))
        return
    if not rows:
        _console().print(Text("none", style="dim"))
        return
    columns = [column.replace("_", " ") for column in columns]
    console, made = _console(), table(columns, rows)
    if sum(each.min_width or 0 for each in made.columns) + 3 * len(columns) < console.width:
        console.print(made)
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        show_facts(dict(zip(columns, row, strict=True)))


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """On one line, and without characters that a terminal would obey, whoever wrote it."""
    return "".join(each if each.isprintable() else " " for each in text)


def show_value(value: Any, *, as_json: bool) -> None:
    """A wire value, one field a line, or as JSON."""
    from taciturn.sdk.listing import shown

    if as_json:
        typer.echo(value.model_dump_json(indent=2))
        return
    show_facts({name: shown(getattr(value, name)) for name in type(value).model_fields})


def show_facts(facts: Mapping[str, str]) -> None:
    """Names and values, one line each."""
    shown = {name.replace("_", " "): printable(text) for name, text in facts.items() if text}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        line = Text.assemble((name.ljust(width), "dim"), "  ", text)
        _console().print(
            line, soft_wrap=True
        )  # a terminal breaks what is long, and copies it whole


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text, of which nothing is cut: ids stand on one line, the rest is folded."""
    made = Table()
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        longest = max(map(len, [column, *cells]))
        whole = any(_ID.fullmatch(cell) for cell in cells)
        width = longest if whole else min(longest, _NARROWEST)
        made.add_column(column, overflow="fold", no_wrap=whole, min_width=width)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def _console() -> Console:
    return Console(highlight=False)
