"""The result of a job, as what people work with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, assert_never

import pandas as pd
from pydantic import RootModel

from taciturn.notebook.frame import PolicyFrame, with_policy
from taciturn.sdk.evaluation import RemoteEvaluation
from taciturn.sdk.job import Result
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


def read_result(transport: Transport, view: JobView) -> Result:
    """Read the result of a job that has succeeded."""
    result = transport.get(f"jobs/{view.id}/result", _Answer).root
    match result:
        case FitResult():
            return RemoteModel(transport, result.model, read_result)
        case SampleResult():
            return _samples(result)
        case EvaluateResult():
            return RemoteEvaluation.of(result.evaluation, result.policy.text)
        case AuditResult():
            return result.audit
        case SynthesizeResult():
            return _synthetic(transport, view, result.policy.text)
        case ProbeResult():
            return None
        case _ as never:
            assert_never(never)


def _samples(result: SampleResult) -> PolicyFrame:
    rows: list[dict[str, Any]] = [
        {"prompt": line.prompt, "text": line.text, "policy": result.policy.text}
        for line in result.samples
    ]
    frame = pd.DataFrame(rows, columns=["prompt", "text", "policy"])
    return with_policy(frame, result.policy.text)


def _synthetic(transport: Transport, view: JobView, policy: str) -> PolicyFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SYNTHETIC
        transport.download(f"jobs/{view.id}/files/{SYNTHETIC}", path)
        return with_policy(read_table(path), policy)
