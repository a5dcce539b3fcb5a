"""Which columns are trained on: decided from the schema alone.

A gateway decides it from the schema that it knows, before anything is held; a worker from the rows'
own. The same rule, so that what a gateway takes does not fail in the worker for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from taciturn.errors import MissingColumnError, RowError, SpecError
from taciturn.preparation.rows import UNIT, missing_column
from taciturn.spec import DataSpec

Kind = Literal["text", "answer", "messages"]


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns that become one record: [text], [question, answer] or [messages]."""

    kind: Kind
    columns: tuple[str, ...]


def choose_fields(schema: pa.Schema, spec: DataSpec) -> Fields:
    """The columns that the spec names, or else the one that the data offers.

    Without any field named: a column "text", else "messages", else the only text column (apart
    from the one that names the privacy unit).

    Raises MissingColumnError, RowError (a column of numbers, say), SpecError.
    """
    fields = _named(spec) or _offered(schema, spec)
    for name in fields.columns:
        if name not in schema.names:
            raise missing_column(name, [n for n in schema.names if n != UNIT])
        _check_type(schema.field(name), fields.kind)
    return fields


def _named(spec: DataSpec) -> Fields | None:
    named: list[Fields] = []
    if spec.text_field is not None:
        named.append(Fields("text", (spec.text_field,)))
    if spec.question_field is not None and spec.answer_field is not None:
        named.append(Fields("answer", (spec.question_field, spec.answer_field)))
    elif spec.question_field is not None or spec.answer_field is not None:
        raise SpecError(
            f"question_field={spec.question_field!r} and answer_field={spec.answer_field!r} go "
            "together; give both"
        )
    if spec.messages_field is not None:
        named.append(Fields("messages", (spec.messages_field,)))
    if len(named) > 1:
        raise SpecError("text, question/answer and messages fields exclude each other; give one")
    return named[0] if named else None


def _offered(schema: pa.Schema, spec: DataSpec) -> Fields:
    if "text" in schema.names:
        return Fields("text", ("text",))
    if "messages" in schema.names:
        return Fields("messages", ("messages",))
    texts = [
        field.name
        for field in schema
        if is_text(field.type) and field.name not in (UNIT, spec.privacy_unit)
    ]
    if len(texts) == 1:
        return Fields("text", (texts[0],))
    columns = ", ".join(name for name in schema.names if name != UNIT)
    raise MissingColumnError(
        f"which column holds the text? none is called 'text' or 'messages' among: {columns}; name "
        "it with text_field, question_field and answer_field, or messages_field"
    )


def is_text(kind: pa.DataType) -> bool:
    """True for Arrow's string types, also behind a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_message_list(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    return pa.types.is_struct(item) and {"role", "content"} <= {f.name for f in item}


def _check_type(field: pa.Field, kind: Kind) -> None:
    fits = is_text(field.type) or (kind == "messages" and _is_message_list(field.type))
    if not fits:
        wanted = "a list of {role, content}, or JSON of one" if kind == "messages" else "text"
        raise RowError(
            f"column {field.name!r} holds {field.type}, not {wanted}; convert it, for example with "
            f'select="..., CAST({field.name} AS VARCHAR) AS {field.name}"'
        )
