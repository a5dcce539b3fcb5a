"""Columns that are trained on: decided from the schema alone.

A gateway decides it from the schema that it knows, before anything is held; a worker from the rows'
own. The same rule, so that what a gateway takes does not fail in the worker for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from taciturn.data.formats import ALPACA, CHATS, REFUSED_COLUMNS, ChatForm
from taciturn.data.rows import missing_column, same_names
from taciturn.errors import MissingColumnError, RowError, SpecError
from taciturn.spec import DataSpec
from taciturn.spec.data import ChatFormat

Kind = Literal["text", "answer", "messages", "tokens", "pairs", "chat pairs"]


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns that become one record: [text], [question, answer], [messages] or, of pairs,
    [prompt, chosen, rejected].

    Of a format they may be more: [instruction, input, output], of which the first two become the
    question, or [conversations, system].

    Of records that are tokens already, [input_ids] and those of labels and attention_mask that are
    there; no rows are taken for such unless the caller says so (`tokens/ready.py`).
    """

    kind: Kind
    columns: tuple[str, ...]
    format: ChatFormat = "auto"

    @property
    def parts(self) -> tuple[str, ...]:
        """Columns whose names the parts of a record have, once it is made."""
        if self.format == "auto":
            return self.columns
        return (self.columns[0], self.columns[-1]) if self.kind == "answer" else self.columns[:1]


def choose_fields(schema: pa.Schema, spec: DataSpec) -> Fields:
    """The columns that the spec names, each spelled exactly so, or else the one that data offer.

    Without any field named: a column "text", else "messages", else columns of ShareGPT or Alpaca,
    else the only text column (apart from the one that names the privacy unit). Bytes are taken for
    UTF-8 text where they are named, as Parquet files of some writers have no other text.

    Raises MissingColumnError, RowError (a column of numbers, say), SpecError.
    """
    if spec.format == "auto":
        fields = _named_fields(spec) or _offered(schema, spec)
    else:
        fields = _formatted(schema, spec, spec.format)
    for name in fields.columns:
        if name not in schema.names:
            raise missing_column(name, schema.names)
    if fields.kind == "pairs":
        return _pairs(schema, fields.columns)
    for name in fields.columns:
        if not (pa.types.is_null(schema.field(name).type) and name not in fields.parts):
            _check_type(schema.field(name), fields)
    return fields


def _pairs(schema: pa.Schema, columns: tuple[str, ...]) -> Fields:
    """Pairs of texts, or of chats, as the prompt's type says; the answers must be like it."""
    chat = CHATS["openai"]
    kind: Kind = "chat pairs" if _is_list_of(schema.field(columns[0]).type, chat) else "pairs"
    for name in columns:
        of = schema.field(name).type
        alike = _is_list_of(of, chat) if kind == "chat pairs" else is_text(of) or is_bytes(of)
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
    formats = _formats_of(schema)
    if len(formats) == 1:
        return _formatted(schema, spec, formats[0])
    units = same_names(spec.privacy_unit or "", schema.names)
    texts = [field.name for field in schema if is_text(field.type) and field.name not in units]
    if len(texts) == 1:
        return Fields("text", (texts[0],))
    columns = ", ".join(schema.names)
    raise MissingColumnError(
        f"no column is called 'text' or 'messages' among: {columns}; name the one that holds the "
        "text with text_field, question_field and answer_field, or messages_field"
    )


def _formats_of(schema: pa.Schema) -> list[ChatFormat]:
    """Formats that the columns of rows are of."""
    names = set(schema.names)
    formats: list[ChatFormat] = []
    if "conversations" in names:
        turns = schema.field("conversations").type
        formats.append("openai" if _is_list_of(turns, CHATS["openai"]) else "sharegpt")
    if {"instruction", "output"} <= names:
        formats.append("alpaca")
    return formats


def _formatted(schema: pa.Schema, spec: DataSpec, format: ChatFormat) -> Fields:
    """The columns of rows in a format; raises RowError for what would change what is learned."""
    for name, reason in REFUSED_COLUMNS[format].items():
        if name in schema.names and not pa.types.is_null(schema.field(name).type):
            raise RowError(
                f"column {name!r} of rows in the format {format} is not read: {reason}; leave it "
                "out with select, if the rows say the same without it"
            )
    if format == "alpaca":
        first, middle, last = ALPACA
        middle_columns = (middle,) if middle in schema.names else ()
        question, answer = spec.question_field or first, spec.answer_field or last
        return Fields("answer", (question, *middle_columns, answer), format)
    turns = spec.messages_field or CHATS[format].column
    if spec.messages_field is None and format == "openai" and turns not in schema.names:
        turns = "conversations"
    system = ("system",) if "system" in schema.names and format == "sharegpt" else ()
    return Fields("messages", (turns, *system), format)


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


def _is_list_of(kind: pa.DataType, form: ChatForm) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    return pa.types.is_struct(item) and {form.speaker, form.words} <= {f.name for f in item}


def _check_type(field: pa.Field, fields: Fields) -> None:
    if is_text(field.type) or is_bytes(field.type):
        return
    is_chat = fields.kind == "messages" and field.name == fields.columns[0]
    form = CHATS["openai" if fields.format == "auto" else fields.format] if is_chat else None
    if form is not None and not _is_list_of(field.type, form):
        raise RowError(
            f"column {field.name!r} holds {field.type}, not a list of {{{form.speaker}, "
            f"{form.words}}} or JSON of one; make it, for example with "
            f"select=\"list_transform(turns, lambda t: {{'{form.speaker}': t.who, "
            f"'{form.words}': t.said}}) AS {form.column}\""
        )
    if form is None:
        name = _quoted(field.name)
        call = f"to_json({name})" if field.type.num_fields else f"CAST({name} AS VARCHAR)"
        raise RowError(
            f"column {field.name!r} holds {field.type}, not text; convert it, for example with "
            f"select='..., {call} AS {name}'"
        )


def _quoted(name: str) -> str:
    """A name as SQL has it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
