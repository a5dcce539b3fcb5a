"""A gateway's fit to pairs of answers: planned, charged and released as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from taciturn.reports.privacy import PrivacyReport
from taciturn.wire.jobs import DataRef, RemoteEvaluate, RemoteFit
from taciturn.wire.worker import BaseModelFacts
from taciturn.worker.job import Runner
from worker.fake_gateway import FakeGateway
from worker.jobs import fit_job, plan_of, request, source, write

REWARDS = {"objective": "dpo", "beta": 0.2}


def pairs(n: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{i % 8}_{i}",
            "prompt": f"Note {i}: the patient has a cough.",
            "chosen": " Please rest.",
            "rejected": " " if i == 5 else " Go away.",  # a row that cannot be used is left out
        }
        for i in range(n)
    ]


def test_a_fit_to_pairs_is_released(base: BaseModelFacts, tmp_path: Path) -> None:
    asked = request(base.name, data=DataRef(dataset="notes"), **REWARDS)
    again = RemoteFit.model_validate_json(asked.model_dump_json())
    assert again.fit_spec() == asked.fit_spec()
    plan = plan_of(again, base)
    assert (plan.objective, plan.beta) == ("dpo", 0.2)
    rows = write(pairs(), tmp_path / "pairs.jsonl")
    gateway = FakeGateway(fit_job(again, base, source(rows)))
    Runner(tmp_path / "root").run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    assert not gateway.refused
    report = PrivacyReport.model_validate_json(gateway.files["privacy_report.json"])
    assert report.objective == "preferences between two answers (DPO), beta=0.2"
    assert plan.privacy is not None
    assert report.epsilon == plan.privacy.epsilon
    assert report.n_units == plan.n_units


def test_pairs_are_not_judged_behind_a_gateway() -> None:
    columns = {"prompt_field": "prompt", "chosen_field": "chosen", "rejected_field": "rejected"}
    model = "mod_0000000000000001"
    with pytest.raises(ValidationError, match=r"download it with model.save"):
        RemoteEvaluate(model=model, public_texts=("A text.",), **columns)
    with pytest.raises(ValidationError, match="target_epsilon does not go with pairs"):
        RemoteEvaluate(model=model, data=DataRef(dataset="x"), target_epsilon=0.5, **columns)
