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
        AuthenticationError,
        BudgetExceededError,
        CallbackError,
        CertificateError,
        CheckpointError,
        ConflictError,
        DatabaseError,
        DatabaseUnavailableError,
        DataError,
        DataNotFoundError,
        FencedError,
        GatewayError,
        GuaranteeError,
        InvalidRequestError,
        JobFailedError,
        LeaseHeldError,
        LedgerConflictError,
        LedgerError,
        LedgerTamperedError,
        LostProcessError,
        MemoryLimitError,
        MissingColumnError,
        MissingDependencyError,
        ModelError,
        ModelNotFoundError,
        NotThereError,
        OutputError,
        PermissionDeniedError,
        PreparationError,
        PrivacyParameterError,
        ProcessError,
        RemoteBudgetError,
        RowError,
        SigningKeyError,
        SpecError,
        TaciturnError,
        TimeLimitError,
        TooManyRequestsError,
        UnavailableError,
        UnknownEntryError,
        UnknownFieldError,
        UnsupportedLayerError,
    )
    from taciturn.llm import LLM
    from taciturn.local.events import (
        CheckpointEvent,
        EndEvent,
        EpsilonEvent,
        EvaluationEvent,
        FitEvent,
        PlanEvent,
        StepEvent,
    )
    from taciturn.reports.privacy import Audit, PrivacyReport
    from taciturn.sdk.client import Client
    from taciturn.sdk.job import Job

__all__ = [
    "LLM",
    "AdapterError",
    "Audit",
    "AuthenticationError",
    "BudgetExceededError",
    "CallbackError",
    "CertificateError",
    "CheckpointError",
    "CheckpointEvent",
    "Client",
    "ConflictError",
    "DataError",
    "DataNotFoundError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "EndEvent",
    "EpsilonEvent",
    "EvaluationEvent",
    "FencedError",
    "FitEvent",
    "GatewayError",
    "GuaranteeError",
    "InvalidRequestError",
    "Job",
    "JobFailedError",
    "LeaseHeldError",
    "LedgerConflictError",
    "LedgerError",
    "LedgerTamperedError",
    "LostProcessError",
    "MemoryLimitError",
    "MissingColumnError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "NotThereError",
    "OutputError",
    "PermissionDeniedError",
    "PlanEvent",
    "PreparationError",
    "PrivacyParameterError",
    "PrivacyReport",
    "ProcessError",
    "RemoteBudgetError",
    "RowError",
    "SigningKeyError",
    "SpecError",
    "StepEvent",
    "TaciturnError",
    "TimeLimitError",
    "TooManyRequestsError",
    "UnavailableError",
    "UnknownEntryError",
    "UnknownFieldError",
    "UnsupportedLayerError",
    "__version__",
]

_HOME = {
    "LLM": "taciturn.llm",
    "Audit": "taciturn.reports.privacy",
    "Client": "taciturn.sdk.client",
    "Job": "taciturn.sdk.job",
    "PrivacyReport": "taciturn.reports.privacy",
    **dict.fromkeys(
        (
            *("CheckpointEvent", "EndEvent", "EpsilonEvent", "EvaluationEvent", "FitEvent"),
            *("PlanEvent", "StepEvent"),
        ),
        "taciturn.local.events",
    ),
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
