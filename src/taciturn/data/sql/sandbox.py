"""A selection tried on a few invented rows, in a process that can take little time and memory.

    python -m taciturn.data.sql.sandbox        requests on stdin, answers on stdout

The process loads the libraries once and forks a child for each request. The child gives up the
right to write files, and to more memory and processor time than a preview can need; its parent
ends it when its time is over. A message is four bytes of length, and JSON.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from time import monotonic, sleep
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from taciturn.data.arrow_types import OpaqueType, name_of_type, type_of_column
from taciturn.data.rows import Rows
from taciturn.data.sql.check import check_single, warm_up
from taciturn.data.sql.framing import LIMIT_S, MESSAGE_LIMIT_BYTES, read_message, to_message
from taciturn.data.sql.run import selected
from taciturn.data.sql.session import limit_memory
from taciturn.errors import MissingColumnError, TaciturnError

MEMORY_LIMIT_BYTES = 1 << 30
"""Address space of a trial, beyond what loading the libraries took."""

_TEXTS = 50
_WRONG = (pa.ArrowException, TypeError, ValueError, OverflowError)
_MOST_CHARACTERS = 200
_LONG_NAME = (
    f"select makes a column whose name is longer than {_MOST_CHARACTERS} characters; name it with "
    "AS"
)

_OUT_OF_TIME = (
    f"select ran for more than {LIMIT_S:g} s on a few rows of the preview; make it simpler"
)
_OUT_OF_MEMORY = "select needs too much memory on a few rows of the preview; make it simpler"
_TOO_LARGE = f"select makes more than {MESSAGE_LIMIT_BYTES >> 20} MB of a few rows; make it smaller"


def answered(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request: of a selection, the unit of a dataset to be registered, or a file
    of records."""
    if "unit" in request:
        return try_unit(request["unit"])
    return read_texts(request["parquet"]) if "parquet" in request else try_selection(request)


def read_texts(path: str) -> dict[str, Any]:
    """The first texts of a file that a job has written."""
    try:
        batches = pq.ParquetFile(path).iter_batches(_TEXTS, columns=["text"])
        texts = [row["text"] for row in next(batches).to_pylist()]
    except (OSError, ValueError, KeyError, StopIteration, pa.ArrowException):
        return {"refused": "the file holds no records"}
    return {"texts": [text for text in texts if isinstance(text, str)]}


def try_unit(unit: str) -> dict[str, Any]:
    """True if this could be a unit, before the columns are known."""
    try:
        check_single(unit, ())
    except MissingColumnError:  # the last thing that is checked: all else is well
        return {}
    except TaciturnError as error:
        return {"refused": str(error)}
    return {"refused": f"privacy_unit={unit!r} reads no column; name the one that tells units"}


def try_selection(request: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows that a selection makes of the rows in a request, or why it is refused."""
    schema = pa.schema([(name, type_of_column(kind)) for name, kind in request["columns"]])
    try:
        table = table_of(request["rows"], schema)
        result = selected(Rows(schema, iter(table.to_batches())), request["select"])
        rows = [plain(row) for batch in result.batches for row in batch.to_pylist()]
    except TaciturnError as error:
        return {"refused": str(error)}
    if any(len(name) > _MOST_CHARACTERS for name in result.schema.names):
        return {"refused": _LONG_NAME}
    return {
        "columns": [[column.name, name_of_type(column.type)] for column in result.schema],
        "rows": rows,
    }


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows of JSON as a table of this schema; what is missing is null, and what has another type is
    converted, or null where it cannot be."""
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, OpaqueType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(len(values)))
    try:
        return pa.array(values, kind)
    except _WRONG:
        return pa.array([_converted(value, kind) for value in values], kind)


def _converted(value: Any, kind: pa.DataType) -> Any:
    """A value of JSON as one of this type; null where it cannot be."""
    if pa.types.is_struct(kind):
        fields = value if isinstance(value, dict) else {}
        return {
            member.name: _converted(fields.get(member.name), member.type) for member in kind.fields
        }
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = value if isinstance(value, list) else []
        return [_converted(item, kind.value_type) for item in items]
    try:
        return _leaf(value, kind)
    except _WRONG:
        return None


def _leaf(value: Any, kind: pa.DataType) -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    if value is None:
        return None
    if pa.types.is_time(kind):  # Arrow casts no text to a time of day
        return time.fromisoformat(text)
    if pa.types.is_timestamp(kind):
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if kind.tz and at.tzinfo is None else at
    return pa.scalar(text).cast(kind).as_py()


def plain(value: Any) -> Any:
    """A value of Arrow as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return value


def serve() -> None:
    """Answer requests until stdin ends."""
    os.nice(5)
    warm_up()
    answers = sys.stdout.buffer
    answers.write(to_message({"ready": True}))
    answers.flush()
    while True:
        try:
            request = read_message(lambda size: os.read(0, size))
        except EOFError:
            return
        answers.write(_in_child(request))
        answers.flush()


def _in_child(request: bytes) -> bytes:
    """The answer of a child to a request, as a message."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(request, writing)
    os.close(writing)
    try:
        return _collected(reading, child)
    finally:
        os.close(reading)


def _collected(reading: int, child: int) -> bytes:
    """Return what a child writes until its time is over; it is gone when this returns."""
    deadline, parts = monotonic() + LIMIT_S, []
    os.set_blocking(reading, False)
    while True:
        try:
            part = os.read(reading, 1 << 16)
        except BlockingIOError:
            if monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return to_message({"refused": _OUT_OF_TIME})
            sleep(0.002)
            continue
        if not part:
            break
        parts.append(part)
    _, status = os.waitpid(child, 0)
    if status == 0 and parts:
        return b"".join(parts)
    out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
    return to_message({"refused": _OUT_OF_TIME if out_of_time else _OUT_OF_MEMORY})


def _answer(request: bytes, writing: int) -> NoReturn:
    """Answer, and end; whatever happens, the parent's code does not run here again."""
    status = 1
    try:
        _limit()
        message = to_message(answered(json.loads(request)))
        if len(message) > MESSAGE_LIMIT_BYTES:
            message = to_message({"refused": _TOO_LARGE})
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(message)
        status = 0
    finally:
        os._exit(status)


def _limit() -> None:
    seconds = math.ceil(LIMIT_S)
    limit_memory(MEMORY_LIMIT_BYTES)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


if __name__ == "__main__":
    serve()
