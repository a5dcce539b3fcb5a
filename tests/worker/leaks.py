"""Canaries planted in rows, a search for them, and errors thrown anywhere."""

from __future__ import annotations

import errno
import random
import re
import sys
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import duckdb
import pyarrow as pa
import torch

import taciturn
from taciturn.errors import (
    CheckpointError,
    DataError,
    GuaranteeError,
    ModelError,
    OutputError,
    RowError,
    SpecError,
)
from worker.fake_gateway import FakeGateway

CANARY = "CANARY Françoise Zwölfer"
ROWS, UNITS, LENGTH = 283, 139, 1117
"""Numbers that nothing public has: of rows, of units that are there, of characters of one text."""

_FORMS = {CANARY.encode(), CANARY.encode("latin-1"), CANARY.encode("utf-16-le")} | {
    ascii(CANARY)[1:-1].encode(),
    CANARY.encode().hex().encode(),
    urllib.parse.quote(CANARY).encode(),
    urllib.parse.quote_plus(CANARY).encode(),
}
_NUMBERS = re.compile(rb"(?<![\w.])(%d|%d|%d)(?![\w.])" % (ROWS, UNITS, LENGTH))
# Lists of tokens, and drawings, hold numbers of all kinds.
_NUMEROUS = ("tokenizer.json", "report.html", "adapter_model.safetensors")
_SOURCE = str(Path(taciturn.__file__).parent)


def rows() -> list[dict[str, Any]]:
    """Return invented rows; some say the canary, in text and in the unit's name."""
    found = [
        {"id": f"p{i % UNITS}_{i}", "text": f"Note: a cough, day {i % 9}."} for i in range(ROWS)
    ]
    for index in range(0, ROWS, 5):
        found[index]["text"] = f"{CANARY} has a cough."
    found[7] = {"id": f"p{7}_{CANARY}", "text": (CANARY + " ") * 50}
    found[7]["text"] = found[7]["text"][:LENGTH].ljust(LENGTH, "!")
    return found


def leaks(gateway: FakeGateway, losses: list[float] | None = None) -> list[str]:
    """Return traces of the rows in everything that is not an incident."""
    found = [
        f"the canary in {what[:80]!r}"
        for what in [*gateway.practitioner, *gateway.files.values()]
        if any(form in what for form in _FORMS)
    ]
    said = [value.model_dump_json().encode() for value in (*gateway.events, *gateway.texts)]
    said += [charge.model_dump_json().encode() for charge in gateway.charges.values()]
    said += [outcome.model_dump_json().encode() for _, outcome in gateway.outcomes]
    said += [body for name, body in gateway.files.items() if name not in _NUMEROUS]
    found += [f"a number in {what[:200]!r}" for what in said if _NUMBERS.search(what)]
    shown = [f"{loss:.6g}".encode() for loss in losses or ()]
    found += [f"a loss in {what[:200]!r}" for what in said if any(loss in what for loss in shown)]
    return found


def quoting() -> str:
    """Return an error text that quotes a row, as a careless library writes it."""
    return f"could not convert {CANARY!r} of {ROWS} rows, length {LENGTH}"


ERRORS: tuple[Callable[[], BaseException], ...] = (
    lambda: ValueError(quoting()),
    lambda: KeyError(quoting()),
    lambda: RuntimeError(quoting()),
    lambda: AssertionError(quoting()),
    lambda: OSError(errno.ENOSPC, quoting()),
    lambda: OSError(errno.EIO, "failed", quoting()),
    lambda: MemoryError(quoting()),
    lambda: torch.OutOfMemoryError(quoting()),
    lambda: duckdb.ConversionException(quoting()),
    lambda: pa.ArrowInvalid(quoting()),
    lambda: UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, quoting()),
    lambda: RowError(quoting()),
    lambda: DataError(quoting()),
    lambda: SpecError(quoting()),
    lambda: ModelError(quoting()),
    lambda: OutputError(quoting()),
    lambda: CheckpointError(quoting()),
    lambda: GuaranteeError(quoting()),
)


@contextmanager
def traced(on_call: Callable[[CodeType], None]) -> Iterator[None]:
    """Tell `on_call` of each call of a function of taciturn in this thread; what it raises is
    raised by that function."""

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_SOURCE):
            on_call(frame.f_code)

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


class Sites:
    """The calls of one run, and a draw among them: a function first, so that rare ones count."""

    def __init__(self) -> None:
        self.calls: dict[CodeType, int] = defaultdict(int)

    def note(self, code: CodeType) -> None:
        """Count a call."""
        self.calls[code] += 1

    def draw(self, chance: random.Random) -> tuple[CodeType, int]:
        """A function and the number of one of its calls."""
        code = chance.choice(sorted(self.calls, key=lambda c: (c.co_filename, c.co_firstlineno)))
        return code, chance.randrange(self.calls[code])


class Bomb:
    """Raises at a call of a function."""

    def __init__(self, site: tuple[CodeType, int], error: BaseException) -> None:
        self.code, self.left = site
        self.error = error
        self.exploded = False

    def __call__(self, code: CodeType) -> None:
        """Told of each call."""
        if self.exploded or code is not self.code:
            return
        self.exploded = self.left == 0
        self.left -= 1
        if self.exploded:
            sys.settrace(None)  # once is enough, and the rest is faster
            raise self.error
