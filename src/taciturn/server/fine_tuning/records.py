"""Records of an uploaded file: JSON lines in one of OpenAI's forms, rewritten in one spelling.

A line that is none is refused by its number; nothing of it is quoted, and nothing of it is kept.
Rewritten lines have the columns of the form and those that the owner has named, and no others: a
key that is a patient's name is never the name of a column.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from taciturn.server.problems import ProblemError

MESSAGES_TYPE = "list<item: struct<role: string, content: string>>"
"""Arrow type of a column of messages, as the rewritten lines have them."""

_LINE_BYTES = 16 * 2**20
_ROLES = ("system", "user", "assistant")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RecordForm:
    """Form of all records of a file.

    Attributes:
        keys: of a line, as OpenAI has them.
        columns: what they become, each with its type; None for text.
        record: SQL that tells one record from another.
    """

    keys: frozenset[str]
    columns: Mapping[str, str | None]
    record: str


CHAT = RecordForm(
    frozenset({"messages"}), {"messages": MESSAGES_TYPE}, "md5(CAST(messages AS VARCHAR))"
)
COMPLETION = RecordForm(
    frozenset({"prompt", "completion"}),
    {"prompt": None, "completion": None},
    "md5(concat_ws(chr(31), prompt, completion))",
)
PREFERENCE = RecordForm(
    frozenset({"input", "preferred_output", "non_preferred_output"}),
    {"prompt": MESSAGES_TYPE, "chosen": MESSAGES_TYPE, "rejected": MESSAGES_TYPE},
    "md5(concat_ws(chr(31), CAST(prompt AS VARCHAR), CAST(chosen AS VARCHAR), "
    "CAST(rejected AS VARCHAR)))",
)
_FORMS = (CHAT, COMPLETION, PREFERENCE)


class Records:
    """Lines of a file, rewritten one by one; `form` is known after the first.

    Raises ProblemError `invalid` where a line is no record.
    """

    def __init__(self, file: IO[bytes], extra_columns: Collection[str], unit: str | None) -> None:
        """Take a file of lines.

        Args:
            extra_columns: columns beside those of the form.
            unit: the column that names the unit, which no line may leave out; None: an expression.
        """
        self._file, self._extra_columns, self._unit = file, frozenset(extra_columns), unit
        self.form: RecordForm | None = None

    def __iter__(self) -> Iterator[bytes]:
        for number, line in enumerate(self._lines(), 1):
            if line.strip():
                yield self._rewritten(line, number)
        if self.form is None:
            raise ProblemError("invalid", "file: it has no record", param="file")

    def _lines(self) -> Iterator[bytes]:
        number = 1
        while line := self._file.readline(_LINE_BYTES + 1):
            if len(line) > _LINE_BYTES:
                raise _refusal(number, f"it is longer than {_LINE_BYTES} bytes; split the record")
            yield line.removeprefix(_BOM) if number == 1 else line
            number += 1

    def _rewritten(self, line: bytes, number: int) -> bytes:
        row = _object(line, number)
        form = next((form for form in _FORMS if form.keys <= row.keys()), None)
        if form is None:
            raise _refusal(
                number,
                "it has neither messages, nor prompt and completion, nor input, preferred_output "
                "and non_preferred_output",
            )
        if self.form is not None and form is not self.form:
            raise _refusal(number, "it has another form than the first record; use one form")
        self.form = form
        if not row.keys() <= form.keys | self._extra_columns:
            raise _refusal(
                number,
                "it has a key that is no part of its form; remove it from the file, or name it in "
                "columns (tools, functions and weights of messages are not learnt from)",
            )
        if self._unit is not None and row.get(self._unit) in (None, ""):
            raise _refusal(number, "it does not name its privacy unit")
        values = {
            name: _plain(row.get(name), number) for name in sorted(self._extra_columns - form.keys)
        }
        values |= _columns(form, row, number)
        try:
            return json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except ValueError:
            raise _refusal(number, "it has a number or text that JSON cannot hold") from None


def _object(line: bytes, number: int) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in items}) < len(items):
            raise ValueError
        return dict(items)

    try:
        row = json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise _refusal(number, "it is no JSON object in UTF-8 with each key once") from None
    if not isinstance(row, dict):
        raise _refusal(number, "it is no JSON object; write one record a line")
    return row


def _columns(form: RecordForm, row: dict[str, Any], number: int) -> dict[str, Any]:
    if form is CHAT:
        messages = _messages(row["messages"], number)
        if not any(message["role"] == "assistant" for message in messages):
            raise _refusal(number, "no message is the assistant's, so there is nothing to learn")
        return {"messages": messages}
    if form is COMPLETION:
        if not all(isinstance(row[name], str) for name in form.keys):
            raise _refusal(number, "prompt and completion have to be text")
        return {name: row[name] for name in form.columns}
    prompt = row["input"]
    if not isinstance(prompt, dict) or prompt.keys() - {"parallel_tool_calls"} != {"messages"}:
        raise _refusal(number, "input has to be an object with messages alone; tools do not count")
    return {
        "prompt": _messages(prompt["messages"], number),
        "chosen": _messages(row["preferred_output"], number),
        "rejected": _messages(row["non_preferred_output"], number),
    }


def _messages(value: Any, number: int) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _refusal(number, "messages have to be a list that is not empty")
    for message in value:
        is_message = isinstance(message, dict) and message.keys() == {"role", "content"}
        if not is_message or not isinstance(message["content"], str):
            raise _refusal(number, "a message has to be an object of role and content, both text")
        if message["role"] not in _ROLES:
            raise _refusal(number, f"a message has a role other than {', '.join(_ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _plain(value: Any, number: int) -> Any:
    if isinstance(value, dict | list):
        raise _refusal(number, "a column beside its form holds an object or a list; use text")
    return value


def _refusal(number: int, why: str) -> ProblemError:
    return ProblemError("invalid", f"file: line {number}: {why}", param="file")
