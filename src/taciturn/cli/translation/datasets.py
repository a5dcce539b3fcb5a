"""Their lists of data sets as one file and its columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taciturn.cli.translation.rules import AXOLOTL
from taciturn.data.suffixes import FORMATS, suffix_of

_ONE = "a fit reads one set of data, so that a unit's records are found together; join the others"
_TURNS = {("role", "content"): "openai", ("from", "value"): "sharegpt"}
"""Keys of a turn that say who speaks and what is said, and the format that has them."""


@dataclass(slots=True)
class Data:
    """Translated data.

    Attributes:
        fields: of a job file.
        decisions: key -> the fields, in words.
        left_out: key -> reason.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def take(self, key: str, note: str = "", **fields: Any) -> None:
        """Add fields that a key of theirs has decided."""
        self.fields |= fields
        text = ", ".join(f"{name}: {value}" for name, value in fields.items())
        self.decisions[key] = f"{text} ({note})" if note else text


def translated_data(tool: str, keys: Mapping[str, Any], folder: Path) -> Data:
    """Return what a file's keys say about data.

    Args:
        folder: of the file, in which its relative paths may be meant.
    """
    data = Data()
    (_axolotl if tool == AXOLOTL.name else _llama_factory)(keys, data, folder)
    return data


def _axolotl(keys: Mapping[str, Any], data: Data, _: Path) -> None:
    listed = keys.get("datasets")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        if "datasets" in keys:
            data.left_out["datasets"] = "it is no list of data sets"
        return
    for number in range(1, len(listed)):
        data.left_out[f"datasets[{number}]"] = _ONE
    first = dict(listed[0])
    place = _file(first.pop("data_files", None)) or _file(first.get("path"))
    if place is None:
        data.left_out["datasets[0].path"] = (
            "it names no file here; save its rows as JSONL or Parquet, and give the path as data"
        )
    else:
        data.take("datasets[0].path", data=place)
        first.pop("ds_type", None)  # its suffix says the same
    first.pop("path", None)
    kind = first.pop("type", None)
    if isinstance(kind, dict):
        _own_prompt(kind, data)
    else:
        name, dot, variant = str(kind).replace(":", ".").partition(".")
        if name not in _AXOLOTL_TYPES:
            data.left_out["datasets[0].type"] = (
                f"{kind} is none of {', '.join(_AXOLOTL_TYPES)}; bring the rows into one of these"
            )
        else:
            _AXOLOTL_TYPES[name](first, data)
        if dot and name in _AXOLOTL_TYPES:
            data.left_out[f"datasets[0].type, {variant}"] = "a prompt is written in one way here"
    for key, setting in first.items():
        if setting not in (None, "", [], {}):
            data.left_out[f"datasets[0].{key}"] = _AXOLOTL_KEYS.get(key, "this key is not known")


def _alpaca(_: dict[str, Any], data: Data) -> None:
    data.take("datasets[0].type", "no words stand around the instruction", format="alpaca")


def _sharegpt(entry: dict[str, Any], data: Data) -> None:
    entry.pop("conversation", None)
    column = {"messages_field": entry.pop("field_messages")} if "field_messages" in entry else {}
    data.take("datasets[0].type", format="sharegpt", **column)


def _chat(entry: dict[str, Any], data: Data) -> None:
    names = entry.pop("message_property_mappings", None) or {}
    names = names if isinstance(names, dict) else {}
    speaker = entry.pop("message_field_role", None) or names.get("role", "role")
    words = entry.pop("message_field_content", None) or names.get("content", "content")
    format = _TURNS.get((speaker, words))
    if format is None:
        data.left_out["datasets[0].type"] = (
            f"turns have {speaker} and {words}; rename them to role and content in select"
        )
        return
    column = entry.pop("field_messages", "messages")
    data.take("datasets[0].type", format=format, messages_field=column)


def _completion(entry: dict[str, Any], data: Data) -> None:
    data.take("datasets[0].type", text_field=entry.pop("field", None) or "text")


_AXOLOTL_TYPES: Mapping[str, Callable[[dict[str, Any], Data], None]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "chat_template": _chat,
    "completion": _completion,
}

_AXOLOTL_KEYS: Mapping[str, str] = {
    "ds_type": "the format follows from the suffix of the file",
    "split": "the file is read whole",
    "train_on_split": "the file is read whole",
    "name": "the file is read whole",
    "shards": "the file is read whole",
    "revision": "the file is read as it is",
    "trust_remote_code": "code of a data set is not run",
    "chat_template": "the model's own chat template writes conversations",
    "chat_template_jinja": "put it into the tokenizer's folder",
    "roles": "the speakers' names are those of the format; rename others in select",
    "roles_to_train": "every turn of the assistant is learned, and no other",
    "train_on_eos": "the template says what ends a turn",
    "message_field_training": "every turn of the assistant is learned",
    "message_field_training_detail": "every turn of the assistant is learned",
    "drop_system_message": "leave it out in select",
    "preprocess_shards": "rows are read in bounded memory",
    "field_human": "the speakers' names are those of the format; rename others in select",
    "field_model": "the speakers' names are those of the format; rename others in select",
    "field": "it is read for the type completion",
    "field_messages": "it is read for the types sharegpt and chat_template",
}


def _own_prompt(kind: Mapping[str, Any], data: Data) -> None:
    """A prompt of one's own: columns with question and answer."""
    question = kind.get("field_instruction", "instruction")
    answer = kind.get("field_output", "output")
    data.take("datasets[0].type", question_field=question, answer_field=answer)
    for key, value in kind.items():
        if key not in ("field_instruction", "field_output") and value:
            data.left_out[f"datasets[0].type.{key}"] = (
                "a question is one column; put its parts together in select"
            )


def _llama_factory(keys: Mapping[str, Any], data: Data, folder: Path) -> None:
    listed = keys.get("dataset")
    names = listed.split(",") if isinstance(listed, str) else listed
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        if "dataset" in keys:
            data.left_out["dataset"] = "it is no name of a data set"
        return
    first, *other_names = [name.strip() for name in names]
    for name in other_names:
        data.left_out[f"dataset: {name}"] = _ONE
    if _file(first) is not None:
        data.take("dataset", data=first)
        return
    directory = Path(str(keys.get("dataset_dir") or "data"))
    entry = next(_registered(first, directory, folder), None)
    if entry is None:
        data.left_out["dataset"] = (
            f"{directory / 'dataset_info.json'} has no file of that name; give the path as data, "
            "and what is in it as format, text_field or messages_field"
        )
        return
    home, about = entry
    if "dataset_dir" in keys:
        data.decisions["dataset_dir"] = "where the file is"
    data.take("dataset", data=str(home / str(about.get("file_name"))))
    _columns(about, keys.get("stage"), data)


def _registered(
    name: str, directory: Path, folder: Path
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield each entry of that name with a file, and the folder that it is in."""
    for home in dict.fromkeys((directory, folder / directory)):
        try:
            text = (home / "dataset_info.json").read_text(encoding="utf-8")
            entry = json.loads(text).get(name)
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(entry, dict) and entry.get("file_name"):
            yield home, entry


def _columns(entry: Mapping[str, Any], stage: object, data: Data) -> None:
    columns = entry.get("columns") if isinstance(entry.get("columns"), dict) else {}
    columns = dict(columns or {})
    tags = entry.get("tags") if isinstance(entry.get("tags"), dict) else {}
    tags = dict(tags or {})
    if stage == "pt":
        data.take("dataset, columns", text_field=columns.pop("prompt", "text"))
    elif entry.get("ranking"):
        names = {"prompt": "prompt_field", "chosen": "chosen_field", "rejected": "rejected_field"}
        fields = {name: columns.pop(key, key) for key, name in names.items()}
        data.take("dataset, columns", **fields)
    elif entry.get("formatting") == "sharegpt":
        turn = (tags.pop("role_tag", "from"), tags.pop("content_tag", "value"))
        format = _TURNS.get(turn)
        if format is None:
            data.left_out["dataset, tags"] = (
                f"turns have {turn[0]} and {turn[1]}; rename them to role and content in select"
            )
            return
        messages = columns.pop("messages", "conversations")
        data.take("dataset, formatting", format=format, messages_field=messages)
    else:
        question, answer = columns.pop("prompt", "instruction"), columns.pop("response", "output")
        data.take("dataset, formatting", format="alpaca")
        if (question, answer) != ("instruction", "output"):
            data.take("dataset, columns", question_field=question, answer_field=answer)
        if columns.get("query") == "input":
            columns.pop("query")
    for key, value in columns.items():
        data.left_out[f"dataset, columns.{key}"] = f"column {value} is not read; see select"
    for key in tags:
        if not (key.endswith("_tag") and tags[key] in _USUAL):
            data.left_out[f"dataset, tags.{key}"] = "rename the speakers in select"


_USUAL = frozenset(("human", "gpt", "user", "assistant", "system", "observation", "function_call"))
"""Speakers that the formats know, or refuse with a reason."""


def _file(value: object) -> str | None:
    """Return a path or URL of rows; None for what may be a name on a hub."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and suffix_of(value) in FORMATS:
        return value
    return None
