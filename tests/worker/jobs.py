"""Small jobs for the tests: a few invented notes, a tiny model, very few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taciturn.engine.model.load import load_base
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import TrainingPlan, make_plan
from taciturn.spec import PerformanceSpec
from taciturn.wire.jobs import AnyRequest, DataRef, RemoteFit
from taciturn.wire.worker import Assignment, BaseModelFacts, PublicSourceRef, SourceRef

UNIT = "split_part(id, '_', 1)"
DECLARED = 40
KEY = "11" * 32
DECLARATION = (
    "olga has registered it at a gateway as the public data set cases, licence CC0: a journal."
)


def notes(n: int = 24) -> list[dict[str, Any]]:
    """Rows of some eight patients."""
    return [
        {"id": f"p{i % 8}_{i}", "text": f"Note {i}: the patient has a cough."} for i in range(n)
    ]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path: Path | str, unit: str = UNIT) -> SourceRef:
    """A reference to rows."""
    return SourceRef(
        source=str(path),
        unit=unit,
        units=DECLARED,
        split_key=KEY,
        prefixes=("/",),
        networks=(),
        own=(),
        mark_key="22" * 32,
    )


def public(path: Path, **changes: Any) -> PublicSourceRef:
    """A reference to text that was declared public, under the name cases."""
    place = source(path).model_dump(exclude={"unit", "units", "names", "split_key"})
    return PublicSourceRef(**{**place, "name": "cases", "declaration": DECLARATION, **changes})


def facts(model: str) -> BaseModelFacts:
    """Return the gateway's facts about a base model."""
    base = load_base(model, PerformanceSpec())
    return BaseModelFacts(
        name=model,
        parameters=base.n_parameters,
        context_length=base.context_length,
        vocabulary=base.vocabulary,
    )


def request(model: str, **fields: Any) -> RemoteFit:
    """A fit of a few steps."""
    settings = {
        "target_epsilon": 4.0,
        "batch_size": 8,
        "steps": 3,
        "method": "lora",
        "r": 2,
        "max_tokens": 32,
        "data": DataRef(dataset="notes"),
        **fields,
    }
    return RemoteFit(model=model, **settings)


def plan_of(asked: RemoteFit, known: BaseModelFacts, delta: float = 1e-5) -> TrainingPlan:
    """The gateway's plan: the namespace's delta, the declared units and the canaries."""
    spec = asked.fit_spec()
    if spec.private:
        spec = spec.model_copy(update={"delta": delta})
    n_units = DECLARED + asked.canaries
    public = PublicFacts(n_units, known.name, known.parameters, known.context_length)
    return make_plan(spec, public)


def fit_job(asked: RemoteFit, known: BaseModelFacts, rows: SourceRef) -> Assignment:
    """The assignment of a fit."""
    return assignment(asked, source=rows, plan=plan_of(asked, known), base_model=known)


def assignment(asked: AnyRequest, job: str = "job_0000000000000001", **fields: Any) -> Assignment:
    """An assignment of any kind."""
    shared = {"attempt": 1, "lease": 1, "lease_s": 30.0, "bucket_s": 0.0}
    return Assignment(job=job, request=asked, **{**shared, **fields})
