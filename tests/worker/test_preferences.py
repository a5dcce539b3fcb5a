"""A gateway's fit to pairs of answers: planned, charged and released as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from taciturn.reports.figures import ReleasedEvaluation
from taciturn.reports.privacy import Audit, PrivacyReport
from taciturn.wire.jobs import DataRef, RemoteAudit, RemoteEvaluate, RemoteFit
from taciturn.wire.worker import Assignment, BaseModelFacts, ReleasePlan
from taciturn.worker.job import Runner
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, fit_job, plan_of, request, source, write

pytestmark = pytest.mark.usefixtures("kept_processes")

MODEL = "mod_0000000000000001"
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


@pytest.fixture(scope="module")
def fitted(
    base: BaseModelFacts, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FakeGateway, Path, Path]:
    """A gateway after a fit to pairs with canaries, the root of the workspaces, and the pairs."""
    folder = tmp_path_factory.mktemp("fitted")
    rows = write(pairs(), folder / "pairs.jsonl")
    asked = request(base.name, canaries=20, **REWARDS)
    gateway = FakeGateway(fit_job(asked, base, source(rows)))
    Runner(folder / "root").run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    return gateway, folder / "root", rows


def of_model(done: FakeGateway, asked: Assignment) -> FakeGateway:
    """A gateway that knows the fitted model."""
    names = {"model": MODEL, "files": tuple(done.files)}
    return FakeGateway(asked.model_copy(update=names), models={MODEL: done.files})


def test_a_fit_to_pairs_is_audited(fitted: tuple[FakeGateway, Path, Path]) -> None:
    done, root, _ = fitted
    asked = assignment(RemoteAudit(model=MODEL, confidence=0.5), job="job_audit")
    gateway = of_model(done, asked)
    Runner(root).run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    assert not gateway.charges
    audit = Audit.model_validate_json(gateway.files["audit.json"])
    report = PrivacyReport.model_validate_json(done.files["privacy_report.json"])
    assert report.canaries is not None
    assert (audit.canaries, audit.canary_commitment) == (20, report.canaries.commitment)
    assert audit.method.startswith("one run, reward of canaries")
    assert not audit.refuted


@pytest.mark.parametrize("n", [24, 0])
def test_private_pairs_are_judged_with_noise_that_is_paid_for(
    n: int, fitted: tuple[FakeGateway, Path, Path], tmp_path: Path
) -> None:
    """Also of no pair at all, which nobody may learn from a job that fails."""
    done, root, rows = fitted
    if not n:
        rows = write([{**pairs(1)[0], "chosen": "", "rejected": ""}], tmp_path / "empty.jsonl")
    asked = RemoteEvaluate(
        model=MODEL,
        data=DataRef(dataset="pairs"),
        target_epsilon=2.0,
        max_tokens=32,
        prompt_field="prompt",
        chosen_field="chosen",
        rejected_field="rejected",
    )
    release = ReleasePlan(noise_multiplier=2.5, epsilon=2.0, delta=1e-5, n_units=20)
    job = assignment(asked, job="job_eval", source=source(rows), release=release)
    gateway = of_model(done, job)
    Runner(root).run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    assert gateway.charged_steps == 1
    figures = ReleasedEvaluation.model_validate_json(gateway.files["evaluation.json"])
    assert (figures.n_units, figures.epsilon, figures.basis) == (20, 2.0, "differential privacy")
    assert figures.ranked is not None
    assert 0 <= figures.ranked.value <= 1
    assert figures.ranked.std > 0
    assert figures.gain is not None


def test_public_pairs_are_not_judged_behind_a_gateway() -> None:
    columns = {"prompt_field": "prompt", "chosen_field": "chosen", "rejected_field": "rejected"}
    with pytest.raises(ValidationError, match=r"download it with model.save"):
        RemoteEvaluate(model=MODEL, public_texts=("A text.",), **columns)
