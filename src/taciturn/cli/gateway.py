"""The connection to a gateway, and how its answers are printed."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_json
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

Answer = Callable[[Any], None]
"""Prints a command's value as JSON where that is asked for; does nothing otherwise."""


def no_answer(value: Any) -> None:
    """Print nothing: the answer is for people."""


def json_option(keys: str) -> Any:
    """Return the option `--json`; its help names the keys of what is printed."""
    return typer.Option("--json", help=f"Print only JSON, for programs: {keys}.")


GATEWAY_KEYS = "the fields that the REST API answers; of a list, one object a line"
Json = Annotated[bool, json_option(GATEWAY_KEYS)]


@contextmanager
def answering(*, as_json: bool) -> Iterator[Answer]:
    """Give the function that prints a command's value as JSON, and leave out what is for people.

    Whatever else is printed until the end of the block is dropped, a library's lines too: only
    JSON is on standard output, and errors are where they ever are.
    """
    if not as_json:
        yield no_answer
        return
    output = sys.stdout

    def answer(value: Any) -> None:
        output.write(to_json(value, indent=2, inf_nan_mode="strings").decode() + "\n")

    with redirect_stdout(io.StringIO()):
        yield answer


def group(help_text: str) -> typer.Typer:
    """Return a group of commands such as `taciturn dataset ...`."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


@contextmanager
def connected() -> Iterator[Client]:
    """Connect to the gateway of `taciturn login`, or of TACITURN_URL and TACITURN_TOKEN."""
    from taciturn.sdk.client import Client

    with Client() as client:
        yield client


def is_remote(text: object) -> bool:
    """Return whether a dataset's or model's text is that of a gateway's."""
    return isinstance(text, str) and text.startswith(GATEWAY)


def required(fields: dict[str, Any], name: str) -> str:
    """Remove a field that there must be, and return it; raises SpecError where it is missing."""
    if name not in fields:
        raise SpecError(f"{name} is missing; give it")
    return str(fields.pop(name))


def named_dataset(client: Client, fields: dict[str, Any], side: str) -> RemoteDataset:
    """Return the gateway's dataset that the fields name, prepared: all of it, or the side of a
    split that is meant. Raises SpecError where they name none."""
    text, held_out = required(fields, "data"), fields.pop("held_out", None)
    if not is_remote(text):
        raise SpecError(f"data {text} is not behind the gateway; name it as {GATEWAY}NAME")
    data = client.dataset(text.removeprefix(GATEWAY))
    select = fields.pop("select", None)
    data = data if select is None else data.select(select)
    if held_out is None:
        return data
    train, test = data.split(test=held_out)
    return train if side == "train" else test


def say(line: str, style: str | None = None, *, error: bool = False) -> None:
    """Print one line, not wrapped, not interpreted."""
    Console(highlight=False, stderr=error).print(line, style=style, markup=False, soft_wrap=True)


def show(listing: Listing[Any], *, as_json: bool) -> None:
    """Print a list as people read it; for programs as lines of JSON, or off a terminal as TSV."""
    if as_json:
        for value in listing:
            typer.echo(value.model_dump_json())
    elif on_terminal():
        show_rows([name.replace("_", " ") for name in listing.columns()], listing.rows())
    else:
        show_rows(*listing.plain())


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table, or one field a line where the terminal is too narrow.

    Off a terminal, as TSV, below a line with the columns' names.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not on_terminal():
        for row in [columns, *rows] if rows else []:
            typer.echo("\t".join(row))
        return
    if not rows:
        _console().print(Text("none", style="dim"))
        return
    columns = [column.replace("_", " ") for column in columns]
    console, grid = _console(), table(columns, rows)
    if sum(column.min_width or 0 for column in grid.columns) + 3 * len(columns) < console.width:
        console.print(grid)
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        show_facts(dict(zip(columns, row, strict=True)))


def on_terminal() -> bool:
    """Return whether a person reads what is printed."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """Return text on one line, without characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def show_value(value: Any, *, as_json: bool) -> None:
    """Print a wire value, one field a line, or as JSON."""
    from taciturn.sdk.listing import readable

    if as_json:
        typer.echo(value.model_dump_json(indent=2))
        return
    show_facts({name: readable(getattr(value, name)) for name in type(value).model_fields})


def show_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, one line each."""
    lines = {name.replace("_", " "): printable(text) for name, text in facts.items() if text}
    width = max(map(len, lines), default=0)
    for name, text in lines.items():
        line = Text.assemble((name.ljust(width), "dim"), "  ", text)
        _console().print(line, soft_wrap=True)  # a terminal breaks long ones, and copies them whole


def figures(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of labels and, aligned to the right, figures."""
    grid = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left")
    for row in rows:
        grid.add_row(*row)
    return grid


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of plain text, of which nothing is cut: ids stand on one line, the rest is
    folded."""
    grid = Table()
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        longest = max(map(len, [column, *cells]))
        whole = any(_ID.fullmatch(cell) for cell in cells)
        width = longest if whole else min(longest, _NARROWEST)
        grid.add_column(column, overflow="fold", no_wrap=whole, min_width=width)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def _console() -> Console:
    return Console(highlight=False)
