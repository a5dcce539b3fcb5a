"""Is this file one that may leave, and does it hold what a file of its name holds?

A name on the list is not enough: a file is read again here, by the type that it claims to be. What
people read (card, page) is made again from the typed values and must be the same.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from taciturn.certificate.envelope import Envelope
from taciturn.engine.generation.synthetic import METADATA_KEY
from taciturn.errors import TaciturnError
from taciturn.reports.card import model_card
from taciturn.reports.figures import ReleasedEvaluation, ReleasedFigures
from taciturn.reports.privacy import AUDIT, REPORT, Audit, PrivacyReport
from taciturn.wire.artifacts import ALLOWED
from taciturn.wire.datasets import SchemaFile
from taciturn.wire.jobs import JobKind
from taciturn.wire.results import SampleLine

FIGURES = "evaluations.json"
_HEADER_BYTES = 100 << 20
_DTYPES = frozenset(
    {"BOOL", "U8", "I8", "I16", "I32", "I64", "F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"}
)
_TENSOR = re.compile(r"^[A-Za-z0-9_.]{1,300}$")
_COLUMNS = frozenset({"text", "prompt", "label", "policy"})


class NotReleasableError(TaciturnError):
    """A file that must not leave: its name or its content is not on the list."""


def check(kind: JobKind, path: Path, forbidden: tuple[str, ...] = ()) -> None:
    """Raise NotReleasableError unless a job of this kind may release this file.

    Args:
        forbidden: texts, such as the workspace's path, that no file may hold.
    """
    name = path.name
    limit_bytes = ALLOWED[kind].get(name)
    if limit_bytes is None:
        raise NotReleasableError(f"{name} is not a file that a job of kind {kind} releases")
    if path.is_symlink() or not path.is_file():
        raise NotReleasableError(f"{name} is not a plain file")
    if path.stat().st_size > limit_bytes:
        raise NotReleasableError(f"{name} is larger than {limit_bytes} bytes")
    try:
        _CHECKS[name](path)
        if not name.endswith((".safetensors", ".parquet")):
            _without(path, forbidden)
    except NotReleasableError:
        raise
    except Exception:  # whatever is wrong with it
        raise NotReleasableError(f"{name} does not hold what a file of its name holds") from None


def _without(path: Path, forbidden: tuple[str, ...]) -> None:
    content = path.read_text(encoding="utf-8")
    if any(text in content for text in forbidden):
        raise NotReleasableError(f"{path.name} names a folder of this worker")


def _typed(model: type[BaseModel]) -> Callable[[Path], None]:
    """The file is what this model writes, and nothing else."""

    def check_file(path: Path) -> None:
        content = path.read_bytes()
        typed_content = model.model_validate_json(content).model_dump(mode="json")
        if json.loads(content) != typed_content:
            raise NotReleasableError(f"{path.name} holds more than its type has room for")

    return check_file


def _object(path: Path) -> None:
    """One JSON object: what transformers and PEFT write of model, tokenizer and adapter."""
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise NotReleasableError(f"{path.name} is not one JSON object")


def _template(path: Path) -> None:
    path.read_text(encoding="utf-8")


def _certificate(path: Path) -> None:
    Envelope.from_bytes(path.read_bytes())


def _card(path: Path) -> None:
    """A function of report and audit."""
    report, audit, _ = _beside(path)
    if path.read_text(encoding="utf-8") != model_card(report, audit):
        raise NotReleasableError(f"{path.name} is not the card of the report beside it")


def _page(path: Path) -> None:
    """A function of report, figures and audit."""
    # Only files of a model have a page, whose curves need scipy; a probe shall not wait for it.
    from taciturn.reports.html.report import report_page

    report, audit, figures = _beside(path)
    if path.read_text(encoding="utf-8") != report_page(report, figures, audit):
        raise NotReleasableError(f"{path.name} is not the page of the report beside it")


def _beside(path: Path) -> tuple[PrivacyReport, Audit | None, ReleasedFigures]:
    folder = path.parent
    report = PrivacyReport.model_validate_json((folder / REPORT).read_bytes())
    audit, figures = folder / AUDIT, folder / FIGURES
    return (
        report,
        Audit.model_validate_json(audit.read_bytes()) if audit.is_file() else None,
        ReleasedFigures.model_validate_json(figures.read_bytes())
        if figures.is_file()
        else ReleasedFigures(),
    )


def _tensors(path: Path) -> None:
    """Tensors from the first byte to the last, and no metadata but the format's name."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _HEADER_BYTES):
            raise NotReleasableError(f"{path.name} is truncated")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not (set(metadata) <= {"format"} and metadata.get("format", "pt") == "pt"):
        raise NotReleasableError(f"{path.name} has metadata")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        end = _tensor(path, name, entry, end)
    if not header or 8 + length + end != size:
        raise NotReleasableError(f"{path.name} holds bytes of no tensor")


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int) -> int:
    first, end = entry["data_offsets"]
    is_tensor = set(entry) == {"dtype", "shape", "data_offsets"} and entry["dtype"] in _DTYPES
    if not (is_tensor and _TENSOR.match(name) and first == start <= end):
        raise NotReleasableError(f"{path.name} holds something that is no tensor")
    return int(end)


def _samples(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        for line in file:
            SampleLine.model_validate_json(line)


def _parquet(path: Path) -> None:
    """Columns of text, and no metadata but the guarantee and Arrow's schema."""
    schema = pq.read_schema(path)
    texts = all(pa.types.is_string(field.type) for field in schema)
    metadata = {key.decode() for key in pq.read_metadata(path).metadata or {}}
    if not (texts and set(schema.names) <= _COLUMNS and metadata <= {METADATA_KEY, "ARROW:schema"}):
        raise NotReleasableError(f"{path.name} holds more than synthetic text")


_CHECKS: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {
        "adapter_config.json": _object,
        "adapter_model.safetensors": _tensors,
        "config.json": _object,
        "generation_config.json": _object,
        "model.safetensors": _tensors,
        "tokenizer.json": _object,
        "tokenizer_config.json": _object,
        "special_tokens_map.json": _object,
        "chat_template.jinja": _template,
        "privacy_report.json": _typed(PrivacyReport),
        "certificate.json": _certificate,
        "README.md": _card,
        "report.html": _page,
        "evaluations.json": _typed(ReleasedFigures),
        "audit.json": _typed(Audit),
        "schema.json": _typed(SchemaFile),
        "samples.jsonl": _samples,
        "evaluation.json": _typed(ReleasedEvaluation),
        "synthetic.parquet": _parquet,
    }
)
