"""Map an exception to the one word about it that may be public. Messages are never looked at."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path

from taciturn.errors import (
    BudgetExceededError,
    CertificateError,
    DataError,
    GuaranteeError,
    MissingColumnError,
    MissingDependencyError,
    ModelError,
    OutputError,
    PreparationError,
    RowError,
    SigningKeyError,
    SpecError,
    TimeLimitError,
)
from taciturn.wire.events import FailureCode


class SourceRefusedError(DataError):
    """The source of the rows is where nothing may be read, or under another budget, too."""


LOG_CHARACTERS = 1_900_000
_TAIL_BYTES = 65_536

_CODES: tuple[tuple[type[BaseException], FailureCode], ...] = (
    (BudgetExceededError, FailureCode.BUDGET_EXCEEDED),
    (GuaranteeError, FailureCode.GUARANTEE_REFUSED),
    (PreparationError, FailureCode.BAD_CONFIGURATION),
    (MissingColumnError, FailureCode.BAD_CONFIGURATION),
    (SourceRefusedError, FailureCode.SOURCE_REFUSED),
    (RowError, FailureCode.DATA_REFUSED),
    (DataError, FailureCode.DATA_UNREADABLE),
    (ModelError, FailureCode.MODEL_REFUSED),
    (MissingDependencyError, FailureCode.INTERNAL),
    (SpecError, FailureCode.BAD_CONFIGURATION),
    (OutputError, FailureCode.STORAGE),
    (CertificateError, FailureCode.INTERNAL),
    (SigningKeyError, FailureCode.INTERNAL),
    (TimeLimitError, FailureCode.TIME),
    (MemoryError, FailureCode.RESOURCES),
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})


def failure_code(error: BaseException) -> FailureCode:
    """The code of an error's class; what is not known is `internal`."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError) and error.errno in _FULL:
        return FailureCode.STORAGE
    torch = sys.modules.get("torch")  # where nobody has loaded it, no error is its own
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return FailureCode.RESOURCES
    return FailureCode.INTERNAL


def full_log(error: BaseException, printed: Path | None) -> str:
    """Everything about an error, for the data's owner: traceback, and what was printed last, by
    all processes of the worker whose files are here."""
    trace = "".join(traceback.format_exception(error))
    other_logs = [] if printed is None else sorted(printed.parent.glob(f"{printed.stem}-*.log"))
    tails = [_tail(path) for path in (*other_logs, printed)]
    return "\n".join((trace, *tails))[-LOG_CHARACTERS:]


def _tail(printed: Path | None) -> str:
    try:
        content = b"" if printed is None else printed.read_bytes()[-_TAIL_BYTES:]
    except OSError:
        return ""
    return content.decode(errors="replace")
