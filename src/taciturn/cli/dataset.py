"""`taciturn dataset`: what a gateway has, and what its owners register."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taciturn.cli.gateway import Json, connected, group, read_rows, say, show, show_value

app = group("Datasets of a gateway: list, look at, register.")
Name = Annotated[str, typer.Argument(help="What the gateway calls it.")]


@app.command()
def add(
    name: Name,
    source: Annotated[
        str, typer.Argument(help="Path, glob or URL; or postgresql+psycopg://HOST/DB#TABLE.")
    ],
    unit: Annotated[str, typer.Option(help="Column or row-wise SQL that names the privacy unit.")],
    namespace: Annotated[str, typer.Option(help="Whom the rows are about: budgets are theirs.")],
    units: Annotated[int, typer.Option(help="How many units: declared, public from then on.")],
    epsilon: Annotated[
        float | None, typer.Option(help="Opens the namespace's budget, where it has none yet.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Goes with --epsilon.")] = None,
    mock: Annotated[Path | None, typer.Option(help="JSONL of invented rows to preview.")] = None,
    description: Annotated[str | None, typer.Option(help="One line for practitioners.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it was seen to be readable.")
    ] = True,
) -> None:
    """Register a reference to private rows, for owners. The gateway never opens them itself."""
    rows = [] if mock is None else read_rows(mock)
    with connected() as client:
        data = client.add_dataset(
            name,
            source,
            unit=unit,
            namespace=namespace,
            units=units,
            epsilon=epsilon,
            delta=delta,
            mock=rows,
            description=description,
        )
        if wait:
            data = data.wait()
        say(f"{data.name}: {data.view.state.value}")


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
    name: Name, expressions: Annotated[str, typer.Argument(help="Row-wise SQL, as in SELECT.")]
) -> None:
    """Try a selection on the preview."""
    with connected() as client:
        say(repr(client.dataset(name).select(expressions).preview()))


@app.command()
def synthesize(
    epsilon: Annotated[float, typer.Option(help="What the preview costs, once for all.")],
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
) -> None:
    """Replace the mock preview by rows written with differential privacy; for owners, paid for."""
    from taciturn.sdk.synthetic_preview import chosen_dataset

    with connected() as client:
        if name is None:
            name = chosen_dataset(client.list_datasets(), client.whoami().name)
        data = client.synthesize_preview(
            name, epsilon=epsilon, model=model, column=column, n=n, progress=True
        )
        say(repr(data.preview()))


@app.command()
def remove(name: Name) -> None:
    """Forget the reference, for owners; rows, models and what was spent stay."""
    with connected() as client:
        client.remove_dataset(name)
        say(f"{name}: removed")
