"""A look at a dataset, for its owner: it can be read, and every row names its unit."""

from __future__ import annotations

from taciturn.data.arrow_types import name_of_type
from taciturn.data.source import open_rows
from taciturn.data.sql.run import with_unit
from taciturn.errors import DataError, SpecError
from taciturn.wire.datasets import ColumnView, SchemaFile
from taciturn.wire.events import Stage
from taciturn.wire.jobs import RemoteProbe
from taciturn.worker.context import JobContext


def run(context: JobContext, request: RemoteProbe) -> None:
    """Read all rows once, and release the names and types of columns."""
    source = context.assignment.source
    if source is None:
        raise SpecError("the job is a probe, and its assignment has no source")
    context.stage(Stage.READING)
    context.padding.begin()
    rows = open_rows(context.open_rows(), names=source.names)
    _check_names(rows.schema.names)
    columns = tuple(
        ColumnView(name=field.name, type=name_of_type(field.type)) for field in rows.schema
    )
    for _ in with_unit(rows, source.unit, []).batches:
        context.heartbeat.check()
    context.rows_are_read()
    path = context.workspace.make_folder("results") / "schema.json"
    path.write_text(SchemaFile(columns=columns).model_dump_json(), encoding="utf-8")
    context.egress.file(path)


def _check_names(names: list[str]) -> None:
    """Raises DataError if a gateway cannot hold these columns."""
    long = next((name for name in names if len(name) > 200), None)
    if long is not None:
        raise DataError(
            f"the column {long[:40]!r}... has a name of {len(long)} characters; rename it to at "
            "most 200"
        )
    if len(names) > 2000:
        raise DataError(f"the data have {len(names)} columns; leave at most 2000")
