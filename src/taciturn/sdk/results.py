"""What came of a job, as what people work with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, assert_never

import pandas as pd
from pydantic import RootModel

from taciturn.notebook.frame import PolicyFrame, with_policy
from taciturn.reports.privacy import Audit
from taciturn.sdk.evaluation import RemoteEvaluation
from taciturn.sdk.model import RemoteModel
from taciturn.sdk.requests import read_table
from taciturn.sdk.transport import Transport
from taciturn.wire.jobs import JobView
from taciturn.wire.results import (
    AuditResult,
    EvaluateResult,
    FitResult,
    JobResult,
    ProbeResult,
    SampleResult,
    SynthesizeResult,
)

SYNTHETIC = "synthetic.parquet"


class _Answer(RootModel[JobResult]):
    pass


def read_result(
    transport: Transport, view: JobView
) -> RemoteModel | PolicyFrame | RemoteEvaluation | Audit | None:
    """The result of a job that has succeeded."""
    found = transport.get(f"jobs/{view.id}/result", _Answer).root
    match found:
        case FitResult():
            return RemoteModel(transport, found.model)
        case SampleResult():
            return _samples(found)
        case EvaluateResult():
            return RemoteEvaluation(found.evaluation, found.policy.text)
        case AuditResult():
            return found.audit
        case SynthesizeResult():
            return _synthetic(transport, view, found.policy.text)
        case ProbeResult():
            return None
        case _ as never:
            assert_never(never)


def _samples(found: SampleResult) -> PolicyFrame:
    rows: list[dict[str, Any]] = [
        {"prompt": line.prompt, "text": line.text, "policy": found.policy.text}
        for line in found.samples
    ]
    frame = pd.DataFrame(rows, columns=["prompt", "text", "policy"])
    return with_policy(frame, found.policy.text)


def _synthetic(transport: Transport, view: JobView, policy: str) -> PolicyFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SYNTHETIC
        transport.download(f"jobs/{view.id}/files/{SYNTHETIC}", path)
        return with_policy(read_table(path), policy)
