"""Structured logs: one JSON object a line. For the operator, and still without secrets.

Of an exception the log holds where it happened and of what type it and its causes were, never its
words: those quote what was being worked on. Tokens are blotted out wherever they turn up.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

_TOKEN = re.compile(r"tac_([0-9a-z]{20})_[A-Za-z0-9_-]*")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}

ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and value is not None:
                fields[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = without_words(record.exc_info[1])
        return blotted(json.dumps(fields, default=str, ensure_ascii=False))


def without_words(error: BaseException) -> list[str]:
    """Types and places of an exception and its causes, the last one first."""
    lines: list[str] = []
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        lines.append(f"{type(current).__module__}.{type(current).__qualname__}")
        for frame in traceback.extract_tb(current.__traceback__):
            lines.append(f"  {frame.filename}:{frame.lineno} {frame.name}")
        current = current.__cause__ or current.__context__
    return lines


def blotted(text: str) -> str:
    """The text without the secrets of tokens; their ids stay."""
    return _TOKEN.sub(r"tac_\1_...", text)


def set_up(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Log as JSON to a stream, by default standard error; uvicorn's own access log is off, because
    it would quote queries."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("taciturn", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
