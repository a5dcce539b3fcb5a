"""Rows as fine-tuning data sets come, Alpaca's, ShareGPT's and OpenAI's, to questions and chats.

What a format has beyond that (tools, weights, earlier exchanges) is refused by name: to leave it
out in silence would fit something else than what the rows say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from taciturn.data.rows import shield
from taciturn.errors import RowError
from taciturn.spec.data import ChatFormat

_PEOPLE = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class ChatForm:
    """Spelling of a conversation.

    Attributes:
        column: where it is, unless messages_field says so.
        speaker: key of a turn that says who speaks.
        words: key of a turn with what is said.
        roles: the role that each speaker has for a chat template.
        speakers: what its readers would look for, in the words of errors.
        refused_keys: keys of a turn that would change what is learned.
    """

    column: str
    speaker: str
    words: str
    roles: Mapping[str, str]
    speakers: str
    refused_keys: tuple[str, ...]


CHATS: Mapping[ChatFormat, ChatForm] = {
    "sharegpt": ChatForm(
        column="conversations",
        speaker="from",
        words="value",
        roles=_PEOPLE,
        speakers="human, gpt or system, or another name of these",
        refused_keys=(),
    ),
    "openai": ChatForm(
        column="messages",
        speaker="role",
        words="content",
        roles={
            "user": "user",
            "assistant": "assistant",
            "system": "system",
            "developer": "system",
        },
        speakers="system, developer, user or assistant",
        refused_keys=("tool_calls", "function_call"),
    ),
}

ALPACA = ("instruction", "input", "output")
"""Columns of Alpaca's rows; `input` may be missing, and may be empty."""

REFUSED_COLUMNS: Mapping[ChatFormat, Mapping[str, str]] = {
    "alpaca": {
        "history": "earlier exchanges are not read",
        "system": "a question has no place for a system's words",
        "tools": "calls of tools are not learned",
    },
    "sharegpt": {"tools": "calls of tools are not learned"},
    "openai": {
        "tools": "calls of tools are not learned",
        "functions": "calls of tools are not learned",
    },
}
"""Columns beside the text that would change what is learned, with the reason."""


def joined_questions(instructions: pa.Array, inputs: pa.Array | None) -> pa.Array:
    """Return Alpaca's questions: the instruction, and below it the input of rows that have one."""
    if inputs is None:
        return instructions
    pairs = zip(instructions.to_pylist(), inputs.to_pylist(), strict=True)
    return pa.array(
        [
            text if text is None or not (more or "").strip() else f"{text}\n{more}"
            for text, more in pairs
        ],
        pa.large_string(),
    )


def chats(format: ChatFormat, name: str, texts: pa.Array, systems: pa.Array | None) -> pa.Array:
    """Return conversations as JSON of [{role, content}].

    Args:
        name: of their column, for errors.
        texts: conversations as JSON, in the given format.
        systems: what the system says before each, where a column of its own has that.

    Raises RowError if a row is no such conversation; it says neither which nor what is in it.
    """
    form = CHATS[format]
    before = [None] * len(texts) if systems is None else systems.to_pylist()
    return pa.array(
        [
            _chat(form, name, text, system)
            for text, system in zip(texts.to_pylist(), before, strict=True)
        ],
        pa.large_string(),
    )


def _chat(form: ChatForm, name: str, text: str, system: str | None) -> str:
    def failed(_: str = "") -> RowError:
        return RowError(
            f"column {name!r} must hold, in every row, a list of "
            f'{{"{form.speaker}": ..., "{form.words}": ...}} with text in both; convert the other '
            "rows in select, or leave them out of the data"
        )

    turns = shield(lambda: json.loads(text), failed)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise failed()
    messages = [_message(form, name, turn, failed()) for turn in turns]
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(
            f"column {name!r} has conversations in some rows in which no turn is the assistant's, "
            "so that there is nothing to learn; leave those rows out of the data"
        )
    if (system or "").strip():
        messages.insert(0, {"role": "system", "content": system or ""})
    return json.dumps(messages, ensure_ascii=False)


def _message(
    form: ChatForm, name: str, turn: Mapping[str, Any], malformed: RowError
) -> dict[str, str]:
    for key in form.refused_keys:
        if turn.get(key):
            raise RowError(
                f"column {name!r} has turns with {key!r} in some rows: calls of tools are not "
                "learned; leave those rows out of the data"
            )
    if turn.get("weight") not in (None, 1):
        raise RowError(
            f"column {name!r} has turns with a 'weight' that is not 1 in some rows: every turn of "
            "the assistant is learned alike; leave those turns out, or make the weight 1"
        )
    speaker, words = turn.get(form.speaker), _words(turn.get(form.words))
    if not isinstance(speaker, str) or words is None:
        raise malformed
    role = form.roles.get(speaker)
    if role is None:
        raise RowError(
            f"column {name!r} has turns in some rows whose {form.speaker!r} is not "
            f"{form.speakers}, such as a tool's (tool, function_call, observation), which are not "
            "learned; leave those rows out of the data, or rename the speakers in select"
        )
    return {"role": role, "content": words}


def _words(value: Any) -> str | None:
    """Return the text of a turn, which OpenAI also has in parts; None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        return None
    parts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        for part in value
    ]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
