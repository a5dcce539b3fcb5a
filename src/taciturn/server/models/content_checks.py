"""Checks of what a worker's files hold: each is read by the gateway before it is kept.

The worker sends only what `wire.artifacts` names; here the same is asked again, of the bytes. A
file that is not exactly of its kind is refused by a word from a fixed list, which quotes nothing.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from taciturn.certificate.envelope import Envelope
from taciturn.certificate.statement import Statement
from taciturn.errors import CertificateError
from taciturn.reports.figures import ReleasedEvaluation, ReleasedFigures
from taciturn.reports.privacy import Audit, PrivacyReport
from taciturn.server.models.tokenizer_check import check_tokenizer
from taciturn.wire.datasets import SchemaFile
from taciturn.wire.jobs import JobKind
from taciturn.wire.results import SampleLine

_HEADER_BYTES = 32 * 2**20
_TENSOR = re.compile(r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
_ADAPTER_TENSOR = re.compile(
    r"^base_model\.model\.[A-Za-z0-9_.]+\.lora_(embedding_)?[AB](\.weight)?$"
)
_DTYPE_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}
_CONFIG_KEY = re.compile(r"^[A-Za-z0-9_.\-]{1,200}$")
_CONFIG_WORD = re.compile(r"^\S{0,300}$")  # a path, a pattern of layers, a special token
_CONFIG_DEPTH = 6
_TOKEN_CHARS, _TEMPLATE_CHARS = 256, 200_000
_SYNTHETIC_COLUMNS = frozenset({"text", "label", "prompt", "policy"})
_SYNTHETIC_METADATA = frozenset({b"taciturn", b"ARROW:schema"})


class FileRefusedError(Exception):
    """The file is not of its kind; the word says in what respect, and quotes nothing."""


def check(
    kind: JobKind,
    name: str,
    path: Path,
    request: Mapping[str, Any],
    vocabulary: int | None = None,
) -> None:
    """Raise FileRefusedError unless the file at `path` is what a job of this kind may release.

    Args:
        request: what was asked for: the file must not hold more.
        vocabulary: of a fit's base model, as declared.
    """
    checks = _CHECKS[kind].get(name)
    if checks is None:
        raise FileRefusedError("name")
    try:
        checks(path, request)
        if name == "tokenizer.json":
            check_tokenizer(plain_json(path.read_bytes()), request["model"], vocabulary)
    except FileRefusedError:
        raise
    except (ValidationError, CertificateError, UnicodeDecodeError, json.JSONDecodeError):
        raise FileRefusedError("format") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        struct.error,
        OSError,
        RecursionError,
        pa.ArrowException,
    ):
        raise FileRefusedError("structure") from None


def plain_json(data: bytes) -> Any:
    """JSON in which nothing is said twice."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FileRefusedError("repeated_field")
    return fields


def _as(model: type[BaseModel]) -> Callable[[Path, Mapping[str, Any]], None]:
    def checked(path: Path, _: Mapping[str, Any]) -> None:
        data = path.read_bytes()
        plain_json(data)
        model.model_validate_json(data)

    return checked


def _samples(path: Path, request: Mapping[str, Any]) -> None:
    """One line for each completion that was asked for, of the prompt it was asked for."""
    prompts = [prompt for prompt in request["prompts"] for _ in range(request.get("n", 1))]
    with path.open("rb") as file:
        for prompt, line in zip(prompts, file, strict=True):
            plain_json(line)
            if SampleLine.model_validate_json(line).prompt != prompt:
                raise FileRefusedError("prompt")


def _certificate(path: Path, _: Mapping[str, Any]) -> None:
    Statement.from_bytes(Envelope.from_bytes(path.read_bytes()).payload)


def _config(path: Path, _: Mapping[str, Any]) -> None:
    """A configuration: names, numbers, single words; no room for a text."""
    value = plain_json(path.read_bytes())
    if not isinstance(value, dict):
        raise FileRefusedError("format")
    _plain(value, _CONFIG_DEPTH)


def _plain(value: Any, depth: int) -> None:
    if depth == 0:
        raise FileRefusedError("depth")
    if isinstance(value, str) and not _CONFIG_WORD.match(value):
        raise FileRefusedError("text")
    for item in _items(value):
        _plain(item, depth - 1)


def _items(value: Any) -> list[Any]:
    """Values inside a dict or a list; raises FileRefusedError for a key that is no name."""
    if isinstance(value, dict):
        if not all(_CONFIG_KEY.match(key) for key in value):
            raise FileRefusedError("field_name")
        return list(value.values())
    return value if isinstance(value, list) else []


def _tokenizer_config(path: Path, _: Mapping[str, Any]) -> None:
    """A configuration, too; special tokens may hold blanks, and a chat template may be in it."""
    value = plain_json(path.read_bytes())
    if not isinstance(value, dict):
        raise FileRefusedError("format")
    template = value.pop("chat_template", "{{ messages }}")
    for source in [template] if isinstance(template, str) else _templates(template):
        _is_template(source)
    _tokens(value, _CONFIG_DEPTH)


def _templates(value: Any) -> list[str]:
    """Several of them, by name."""
    return (
        [value[name] for name in value]
        if isinstance(value, dict)
        else [template["template"] for template in value]
    )


def _tokens(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if len(value) > _TOKEN_CHARS:
            raise FileRefusedError("text")
        return
    if depth == 0:
        raise FileRefusedError("depth")
    for item in _items(value):
        _tokens(item, depth - 1)


def _json(path: Path, _: Mapping[str, Any]) -> None:
    """One object; `check` reads a tokenizer's more closely."""
    if not isinstance(plain_json(path.read_bytes()), dict):
        raise FileRefusedError("format")


def _template(path: Path, _: Mapping[str, Any]) -> None:
    _is_template(path.read_text(encoding="utf-8"))


def _is_template(text: Any) -> None:
    """Check that a template writes messages; the worker checks that it is the base model's."""
    if not isinstance(text, str) or len(text) > _TEMPLATE_CHARS or "messages" not in text:
        raise FileRefusedError("template")


def _adapter(path: Path, _: Mapping[str, Any]) -> None:
    _tensors(path, _ADAPTER_TENSOR)


def _weights(path: Path, _: Mapping[str, Any]) -> None:
    _tensors(path, _TENSOR)


def _tensors(path: Path, names: re.Pattern[str]) -> None:
    """The header of a safetensors file: tensors by name, side by side, filling the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_HEADER_BYTES, size - 8):
            raise FileRefusedError("header")
        header = plain_json(file.read(length))
    if header.pop("__metadata__", {"format": "pt"}) != {"format": "pt"}:
        raise FileRefusedError("metadata")
    end = 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        end = _tensor(name, tensor, names, end)
    if not header or 8 + length + end != size:
        raise FileRefusedError("size")


def _tensor(name: str, tensor: dict[str, Any], names: re.Pattern[str], start: int) -> int:
    """Return the end of a tensor, which has to begin where the one before it ended."""
    if not names.match(name) or len(name) > 400:
        raise FileRefusedError("tensor_name")
    if set(tensor) != {"dtype", "shape", "data_offsets"} or tensor["dtype"] not in _DTYPE_BITS:
        raise FileRefusedError("tensor")
    begin, end = tensor["data_offsets"]
    bits = math.prod(tensor["shape"]) * _DTYPE_BITS[tensor["dtype"]]
    if begin != start or min([0, *tensor["shape"]]) < 0 or (end - begin) * 8 != bits:
        raise FileRefusedError("tensor_size")
    return int(end)


def _synthetic(path: Path, request: Mapping[str, Any]) -> None:
    """Columns of text, no more rows than were asked for, and the guarantee."""
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    if not set(schema.names) <= _SYNTHETIC_COLUMNS or "text" not in schema.names:
        raise FileRefusedError("columns")
    if any(field.type != pa.string() or field.metadata for field in schema):
        raise FileRefusedError("column_types")
    if not set(file.metadata.metadata or {}) <= _SYNTHETIC_METADATA:
        raise FileRefusedError("metadata")
    if file.metadata.num_rows > request["n"]:
        raise FileRefusedError("rows")


_Check = Callable[[Path, Mapping[str, Any]], None]

_CHECKS: Mapping[JobKind, Mapping[str, _Check]] = MappingProxyType(
    {
        JobKind.PROBE: {"schema.json": _as(SchemaFile)},
        JobKind.SAMPLE: {"samples.jsonl": _samples},
        JobKind.EVALUATE: {"evaluation.json": _as(ReleasedEvaluation)},
        JobKind.AUDIT: {"audit.json": _as(Audit)},
        JobKind.SYNTHESIZE: {"synthetic.parquet": _synthetic},
        JobKind.FIT: {
            "adapter_config.json": _config,
            "adapter_model.safetensors": _adapter,
            "config.json": _config,
            "generation_config.json": _config,
            "model.safetensors": _weights,
            "tokenizer.json": _json,
            "tokenizer_config.json": _tokenizer_config,
            "special_tokens_map.json": _tokenizer_config,
            "chat_template.jinja": _template,
            "privacy_report.json": _as(PrivacyReport),
            "certificate.json": _certificate,
            "evaluations.json": _as(ReleasedFigures),
            "audit.json": _as(Audit),
        },
    }
)
