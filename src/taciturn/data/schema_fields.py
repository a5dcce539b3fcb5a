"""Columns that are trained on: decided from the schema alone.

A gateway decides it from the schema that it knows, before anything is held; a worker from the rows'
own. The same rule, so that what a gateway takes does not fail in the worker for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from taciturn.data.rows import missing_column, same_names
from taciturn.errors import MissingColumnError, RowError, SpecError
from taciturn.spec import DataSpec

Kind = Literal["text", "answer", "messages", "tokens", "pairs", "chat pairs"]


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns that become one record: [text], [question, answer], [messages] or, of pairs,
    [prompt, chosen, rejected].

    Of records that are tokens already, [input_ids] and those of labels and attention_mask that are
    there; no rows are taken for such unless the caller says so (`tokens/ready.py`).
    """

    kind: Kind
    columns: tuple[str, ...]


def choose_fields(schema: pa.Schema, spec: DataSpec) -> Fields:
    """The columns that the spec names, each spelled exactly so, or else the one that data offer.

    Without any field named: a column "text", else "messages", else the only text column (apart
    from the one that names the privacy unit). Bytes are taken for UTF-8 text where they are named,
    as Parquet files of some writers have no other text.

    Raises MissingColumnError, RowError (a column of numbers, say), SpecError.
    """
    fields = _named_fields(spec) or _offered(schema, spec)
    for name in fields.columns:
        if name not in schema.names:
            raise missing_column(name, schema.names)
    if fields.kind == "pairs":
        return _pairs(schema, fields.columns)
    for name in fields.columns:
        _check_type(schema.field(name), fields.kind)
    return fields


def _pairs(schema: pa.Schema, columns: tuple[str, ...]) -> Fields:
    """Pairs of texts, or of chats, as the prompt's type says; the answers must be like it."""
    kind: Kind = "chat pairs" if _is_message_list(schema.field(columns[0]).type) else "pairs"
    for name in columns:
        of = schema.field(name).type
        alike = _is_message_list(of) if kind == "chat pairs" else is_text(of) or is_bytes(of)
        if not alike:
            type_name = "a list of {role, content}" if kind == "chat pairs" else "text"
            raise RowError(
                f"column {name!r} holds {of}, not {type_name} as column {columns[0]!r} does; make "
                "prompt, chosen and rejected alike in select: all three text, or all three lists "
                "of {role, content}, the prompt's turns not repeated in the answers"
            )
    return Fields(kind, columns)


def _named_fields(spec: DataSpec) -> Fields | None:
    choices: list[Fields] = []
    if spec.text_field is not None:
        choices.append(Fields("text", (spec.text_field,)))
    if spec.question_field is not None and spec.answer_field is not None:
        choices.append(Fields("answer", (spec.question_field, spec.answer_field)))
    elif spec.question_field is not None or spec.answer_field is not None:
        raise SpecError(
            f"question_field={spec.question_field!r} and answer_field={spec.answer_field!r} go "
            "together; give both"
        )
    if spec.messages_field is not None:
        choices.append(Fields("messages", (spec.messages_field,)))
    names = (spec.prompt_field, spec.chosen_field, spec.rejected_field)
    columns = tuple(name for name in names if name is not None)
    if len(columns) == len(names):
        choices.append(Fields("pairs", columns))
    elif columns:
        raise SpecError(
            f"prompt_field={names[0]!r}, chosen_field={names[1]!r} and rejected_field={names[2]!r} "
            "go together; give all three"
        )
    if len(choices) > 1:
        raise SpecError(
            "text, question/answer, messages and pairs' fields exclude each other; give one"
        )
    return choices[0] if choices else None


def _offered(schema: pa.Schema, spec: DataSpec) -> Fields:
    if "text" in schema.names:
        return Fields("text", ("text",))
    if "messages" in schema.names:
        return Fields("messages", ("messages",))
    units = same_names(spec.privacy_unit or "", schema.names)
    texts = [field.name for field in schema if is_text(field.type) and field.name not in units]
    if len(texts) == 1:
        return Fields("text", (texts[0],))
    columns = ", ".join(schema.names)
    raise MissingColumnError(
        f"no column is called 'text' or 'messages' among: {columns}; name the one that holds the "
        "text with text_field, question_field and answer_field, or messages_field"
    )


def is_text(kind: pa.DataType) -> bool:
    """True for Arrow's string types, also behind a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_bytes(kind: pa.DataType) -> bool:
    """True for Arrow's types of bytes, which may be text, also behind a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_message_list(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    return pa.types.is_struct(item) and {"role", "content"} <= {f.name for f in item}


def _check_type(field: pa.Field, kind: Kind) -> None:
    if is_text(field.type) or is_bytes(field.type):
        return
    if kind == "messages" and not _is_message_list(field.type):
        raise RowError(
            f"column {field.name!r} holds {field.type}, not a list of {{role, content}} or JSON of "
            'one; make it, for example with select="list_transform(turns, lambda t: '
            "{'role': t.who, 'content': t.said}) AS messages\""
        )
    if kind != "messages":
        name = _quoted(field.name)
        call = f"to_json({name})" if field.type.num_fields else f"CAST({name} AS VARCHAR)"
        raise RowError(
            f"column {field.name!r} holds {field.type}, not text; convert it, for example with "
            f"select='..., {call} AS {name}'"
        )


def _quoted(name: str) -> str:
    """A name as SQL has it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
