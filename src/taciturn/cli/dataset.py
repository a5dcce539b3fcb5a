"""`taciturn dataset`, `taciturn public-data`: what a gateway has, and what is registered there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taciturn.cli import ExitCode
from taciturn.cli.gateway import (
    Json,
    answering,
    connected,
    group,
    json_option,
    on_terminal,
    printable,
    say,
    show,
    show_value,
)

if TYPE_CHECKING:
    from taciturn.notebook.frame import PolicyFrame
    from taciturn.sdk.dataset import RemoteDataset

app = group("Datasets of a gateway: list, look at, register.")
Name = Annotated[str, typer.Argument(help="Name of the dataset at the gateway.")]
ColumnNames = Annotated[
    str | None, typer.Option("--columns", help="Names of all columns, by comma: public then.")
]
JsonRows = Annotated[bool, json_option("policy, rows")]
NoHeader = Annotated[
    bool,
    typer.Option(
        "--no-header",
        help="CSV or TSV without a line of names; without --columns they are column_1, ...",
    ),
]


@app.command()
def add(
    name: Name,
    source: Annotated[
        str, typer.Argument(help="Path, glob or URL; or postgresql+psycopg://HOST/DB#TABLE.")
    ],
    unit: Annotated[str, typer.Option(help="Column or row-wise SQL that names the privacy unit.")],
    namespace: Annotated[
        str,
        typer.Option(help="Namespace: the people whom the rows are about, who share one budget."),
    ],
    units: Annotated[
        int, typer.Option(help="Declared number of privacy units; public from then on.")
    ],
    columns: ColumnNames = None,
    no_header: NoHeader = False,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Epsilon of the namespace's budget, which is opened if there is none yet."
        ),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Goes with --epsilon.")] = None,
    mock: Annotated[Path | None, typer.Option(help="JSONL of invented rows to preview.")] = None,
    description: Annotated[str | None, typer.Option(help="One line for practitioners.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until a worker has read the data.")
    ] = True,
) -> None:
    """Register a reference to private rows, for owners. The gateway never opens them itself.

    With --columns the dataset is ready once a worker has found just these. Without, you are shown
    what was found, and confirm it: a CSV's first line may be a row, and its values are shown to
    nobody else.
    """
    from taciturn.sdk.requests import read_rows

    rows = [] if mock is None else read_rows(mock)
    with connected() as client:
        data = client.add_dataset(
            name,
            source,
            unit=unit,
            namespace=namespace,
            units=units,
            columns=_names(columns),
            header=not no_header,
            epsilon=epsilon,
            delta=delta,
            mock=rows,
            description=description,
        )
        if wait:
            data = _looked_at(data)
        say(f"{data.name}: {data.view.state.value}")


@app.command()
def confirm(
    name: Name,
    columns: ColumnNames = None,
    no_header: NoHeader = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Confirm the columns without being asked.")
    ] = False,
) -> None:
    """Say that the columns that a worker found are names, and no values of a row; for owners.

    From then on whoever may use the dataset sees them. With --no-header a worker looks again.
    """
    with connected() as client:
        data = client.dataset(name)
        if columns is not None or no_header:
            data = data.confirm(_names(columns), header=False if no_header else None)
        elif yes:
            data = data.confirm()
        data = _looked_at(data)
        say(f"{data.name}: {data.view.state.value}")


def _looked_at(data: RemoteDataset) -> RemoteDataset:
    """The dataset once a worker has looked, its columns confirmed; asks where somebody can answer.

    Exit code 1 where they are still to be confirmed.
    """
    from taciturn.sdk.dataset import to_confirm
    from taciturn.wire.datasets import DatasetState

    data = data.wait()
    if data.view.state is not DatasetState.UNCONFIRMED:
        return data
    for line in to_confirm(data.view):
        say(printable(line))
    if on_terminal() and sys.stdin.isatty():
        question = "Are these names of columns, which whoever may use the dataset may see?"
        if typer.confirm(question, default=False):
            return data.confirm()
    confirm_it = f"taciturn dataset confirm {data.name}"
    remedies = [f"if these are names: {confirm_it} --yes"]
    if data.view.found is not None and "first line" in data.view.found.named_by:
        remedies.append(f"if the first line is a row: {confirm_it} --no-header --columns ...")
    say(f"{data.name}: unconfirmed; {'; '.join(remedies)}", style="yellow")
    raise typer.Exit(ExitCode.REFUSED)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the datasets that you may know of."""
    with connected() as client:
        show(client.list_datasets(), as_json=as_json)


@app.command("show")
def show_one(name: Name, as_json: Json = False) -> None:
    """Show a dataset's terms, its budget and its preview; never a row."""
    with connected() as client:
        data = client.dataset(name)
        if as_json:
            show_value(data.view, as_json=True)
        else:
            say(repr(data))


@app.command()
def select(
    name: Name,
    expressions: Annotated[str, typer.Argument(help="Row-wise SQL, as in SELECT.")],
    as_json: JsonRows = False,
) -> None:
    """Try a selection on the rows of the preview."""
    with connected() as client, answering(as_json=as_json) as answer:
        frame = client.dataset(name).select(expressions).preview()
        answer(_plain(frame))
        say(repr(frame))


@app.command()
def synthesize(
    epsilon: Annotated[float, typer.Option(help="Epsilon that the preview costs, once.")],
    name: Annotated[
        str | None, typer.Argument(help="Dataset; default: the one that you own.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Base model that learns to write the rows; default: the smallest allowed one."
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Text column that is written; default: text, or the only one."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Rows to write.")] = 50,
    as_json: JsonRows = False,
) -> None:
    """Replace the mock preview by rows written with differential privacy; for owners, paid for."""
    from taciturn.sdk.synthetic_preview import chosen_dataset

    with connected() as client, answering(as_json=as_json) as answer:
        if name is None:
            name = chosen_dataset(client.list_datasets(), client.whoami().name)
        data = client.synthesize_preview(
            name, epsilon=epsilon, model=model, column=column, n=n, progress=True
        )
        frame = data.preview()
        answer(_plain(frame))
        say(repr(frame))


def _plain(frame: PolicyFrame) -> dict[str, Any]:
    """Return a preview's policy and rows as values of JSON."""
    rows = json.loads(frame.to_json(orient="records", date_format="iso"))
    return {"policy": frame.attrs["policy"], "rows": rows}


@app.command()
def remove(name: Name) -> None:
    """Forget the reference, for owners; rows, models and what was spent stay."""
    with connected() as client:
        client.remove_dataset(name)
        say(f"{name}: removed")


public = group("Public data sets: text without a privacy unit or a budget, fitted first.")


@public.command("list")
def list_public(as_json: Json = False) -> None:
    """List the public data sets, which --public-data of a fit may name."""
    with connected() as client:
        show(client.public_datasets(), as_json=as_json)


@public.command("show")
def show_public(name: Name, as_json: Json = False) -> None:
    """Show what was declared of a public data set."""
    with connected() as client:
        show_value(client.public_dataset(name), as_json=as_json)


@public.command("add")
def add_public(
    name: Name,
    source: Annotated[
        str, typer.Argument(help="Path, glob or URL; or postgresql+psycopg://HOST/DB#TABLE.")
    ],
    licence: Annotated[str, typer.Option(help="Licence of the text.")],
    origin: Annotated[
        str, typer.Option(help="Where it comes from, and why anybody may read all of it.")
    ],
    text_field: Annotated[
        str | None,
        typer.Option(help="Its column of text; default: as in the data, or the one it has."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="One line for practitioners.")] = None,
) -> None:
    """Declare text public, for owners and administrators. Jobs learn from it without any privacy.

    Text is public if anybody may read all of it, if it would be there just as it is without any
    private row, and if it was chosen without looking at one. Nothing can check that.
    """
    with connected() as client:
        view = client.add_public_dataset(
            name,
            source,
            licence=licence,
            origin=origin,
            text_field=text_field,
            description=description,
        )
        say(f"{view.name}: public")


@public.command("remove")
def remove_public(name: Name) -> None:
    """Let no new job use a public data set; its name stays taken."""
    with connected() as client:
        client.remove_public_dataset(name)
        say(f"{name}: removed")
