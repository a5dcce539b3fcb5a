"""What the commands that talk to a gateway share: the connection, tables, Ctrl-C."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taciturn.errors import DataError, SpecError
from taciturn.spec import GATEWAY

if TYPE_CHECKING:
    from taciturn.sdk.client import Client
    from taciturn.sdk.dataset import RemoteDataset
    from taciturn.sdk.listing import Listing

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
    """A list as a table, or as lines of JSON."""
    if as_json:
        for value in listing:
            typer.echo(value.model_dump_json())
        return
    rows = table([name.replace("_", " ") for name in listing.columns()], listing.rows())
    _console().print(rows if len(listing) else Text("none", style="dim"))


def show_value(value: Any, *, as_json: bool) -> None:
    """A wire value, one field a line, or as JSON."""
    from taciturn.sdk.listing import shown

    if as_json:
        typer.echo(value.model_dump_json(indent=2))
        return
    show_facts({name: shown(getattr(value, name)) for name in type(value).model_fields})


def show_facts(facts: Mapping[str, str]) -> None:
    """Names and values, one line each."""
    grid = Table.grid(padding=(0, 2))
    for name, text in facts.items():
        if text:
            grid.add_row(Text(name.replace("_", " "), style="dim"), Text(text))
    _console().print(grid)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text."""
    made = Table(*columns)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; raises DataError, which quotes none of them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is not a JSON object")
        rows.append(row)
    return rows


def _console() -> Console:
    return Console(highlight=False)
