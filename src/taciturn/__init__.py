"""taciturn: fine-tune language models on private text without making them talk.

The public names are imported when they are first used: `import taciturn` loads neither torch nor
transformers, so it is cheap in a process that only reads a report or prices a job.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from taciturn._version import __version__

if TYPE_CHECKING:
    from taciturn.errors import (
        AdapterError,
        BudgetExceededError,
        CertificateError,
        CheckpointError,
        DatabaseError,
        DatabaseUnavailableError,
        DataError,
        DataNotFoundError,
        FencedError,
        GuaranteeError,
        LeaseHeldError,
        LedgerConflictError,
        LedgerError,
        LedgerTamperedError,
        MissingColumnError,
        MissingDependencyError,
        ModelError,
        ModelNotFoundError,
        OutputError,
        PreparationError,
        PrivacyParameterError,
        ProcessError,
        RowError,
        SigningKeyError,
        SpecError,
        TaciturnError,
        UnknownEntryError,
        UnknownFieldError,
        UnsupportedLayerError,
    )
    from taciturn.llm import LLM
    from taciturn.report import Audit, PrivacyReport

__all__ = [
    "LLM",
    "AdapterError",
    "Audit",
    "BudgetExceededError",
    "CertificateError",
    "CheckpointError",
    "DataError",
    "DataNotFoundError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "FencedError",
    "GuaranteeError",
    "LeaseHeldError",
    "LedgerConflictError",
    "LedgerError",
    "LedgerTamperedError",
    "MissingColumnError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "OutputError",
    "PreparationError",
    "PrivacyParameterError",
    "PrivacyReport",
    "ProcessError",
    "RowError",
    "SigningKeyError",
    "SpecError",
    "TaciturnError",
    "UnknownEntryError",
    "UnknownFieldError",
    "UnsupportedLayerError",
    "__version__",
]

_HOME = {
    "LLM": "taciturn.llm",
    "Audit": "taciturn.report",
    "PrivacyReport": "taciturn.report",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'taciturn' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME.get(name, "taciturn.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
