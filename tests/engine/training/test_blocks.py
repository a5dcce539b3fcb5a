"""Steps in blocks, each allowed before it runs, with a checkpoint before each; and nobody there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taciturn.data.declared import DeclaredRows
from taciturn.engine.model.load import load_base
from taciturn.engine.training.checkpoint import StepJournal
from taciturn.engine.training.loop import Blocks
from taciturn.errors import BudgetExceededError, SpecError
from taciturn.local.estimate import public_facts
from taciturn.local.fit import Arranged, fit
from taciturn.planning.plan import Speed, TrainingPlan, make_plan
from taciturn.spec import FitSpec

SPEC = FitSpec(
    privacy_unit="id", target_epsilon=4.0, batch_size=8, steps=7, method="lora", r=2, max_tokens=32
)
NOTES = [{"id": f"p{i % 6}", "text": f"Note {i}: a cough."} for i in range(18)]
NOBODY = [{"id": None, "text": "whose?"}]


def plan_of(base: Any, spec: FitSpec = SPEC, n_units: int = 30) -> TrainingPlan:
    return make_plan(spec, public_facts(base, n_units))


def run(
    model: Path,
    folder: Path,
    allow: Any,
    *,
    rows: object = NOTES,
    spec: FitSpec = SPEC,
    resume: bool = False,
    plan: TrainingPlan | None = None,
) -> Any:
    base = load_base(str(model), spec)
    arranged = Arranged(plan or plan_of(base, spec), Blocks(3, allow))
    rows = DeclaredRows(rows, 30)
    return fit(base, rows, spec, folder / "out", resume=resume, arranged=arranged)


def steps_run(folder: Path) -> list[int]:
    entries = StepJournal(folder / "out" / "private" / "journal.jsonl").entries()
    return [entry["step"] for entry in entries if "step" in entry]


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "out" / "private" / "checkpoints").glob("step-*"))


def test_no_block_runs_before_it_is_allowed(tiny_llama: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def allow(first: int, steps: int) -> None:
        assert steps_run(tmp_path) == list(range(1, first + 1))
        assert checkpoints(tmp_path)[-1] == f"step-{first:08d}"
        asked.append((first, steps))

    run(tiny_llama, tmp_path, allow)
    assert asked == [(0, 3), (3, 3), (6, 1)]


def test_what_is_not_allowed_does_not_run(tiny_llama: Path, tmp_path: Path) -> None:
    def allow(first: int, steps: int) -> None:
        if first == 3:
            raise BudgetExceededError("no room")

    with pytest.raises(BudgetExceededError):
        run(tiny_llama, tmp_path, allow)
    assert steps_run(tmp_path) == [1, 2, 3]


def test_a_resumed_run_asks_again_from_its_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def crash(first: int, steps: int) -> None:
        asked.append(first)
        if first == 3:
            raise KeyError("the machine is gone, and nobody knows whether these steps ran")

    with pytest.raises(KeyError):
        run(tiny_llama, tmp_path, crash)
    run(tiny_llama, tmp_path, lambda first, steps: asked.append(first), resume=True)
    assert asked == [0, 3, 3, 6]
    assert steps_run(tmp_path) == list(range(1, 8))


def test_a_run_stopped_before_its_first_block_can_be_resumed(
    tiny_llama: Path, tmp_path: Path
) -> None:
    def refuse(first: int, steps: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        run(tiny_llama, tmp_path, refuse)
    assert checkpoints(tmp_path) == ["step-00000000"]
    result = run(tiny_llama, tmp_path, lambda first, steps: None, resume=True)
    assert result.report.steps == 7


@pytest.mark.parametrize("rows", [NOTES, NOBODY])
def test_what_is_released_says_nothing_about_who_is_there(
    rows: object, tiny_llama: Path, tmp_path: Path
) -> None:
    """The true number of units is neither in the report nor in what a gateway is asked for."""
    asked: list[tuple[int, int]] = []
    result = run(tiny_llama, tmp_path, lambda *block: asked.append(block), rows=rows)
    base = load_base(str(tiny_llama), SPEC)
    plan = plan_of(base)
    assert plan.privacy is not None
    assert result.report.n_units == 30
    assert result.report.epsilon == plan.privacy.epsilon
    assert result.report.sampling_probability == 8 / 30
    assert asked == [(0, 3), (3, 3), (6, 1)]


@pytest.mark.parametrize("rows", [NOTES, NOTES[:2]])
def test_steps_without_privacy_are_the_plans(
    rows: list[Any], tiny_llama: Path, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"target_epsilon": "unlimited"})
    run(tiny_llama, tmp_path, lambda first, steps: None, rows=rows, spec=spec)
    assert steps_run(tmp_path) == list(range(1, 8))


@pytest.mark.parametrize(
    "change",
    [{"steps": 6}, {"batch_size": 9}, {"max_tokens": 64}, {"max_records_per_unit": 9}],
)
def test_another_plan_than_the_specs_is_refused(
    change: dict[str, int], tiny_llama: Path, tmp_path: Path
) -> None:
    plan = plan_of(load_base(str(tiny_llama), SPEC)).model_copy(update=change)
    with pytest.raises(SpecError, match="make the plan anew"):
        run(tiny_llama, tmp_path, lambda first, steps: None, plan=plan)


def test_somebody_must_have_been_declared_besides_canaries(
    tiny_llama: Path, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"canaries": 30})
    with pytest.raises(SpecError, match="canaries=30"):
        run(tiny_llama, tmp_path, lambda first, steps: None, spec=spec)


def test_a_time_limit_is_reckoned_with_the_gateways_speed(tiny_llama: Path, tmp_path: Path) -> None:
    """Which is in its plan; a plan of other batches or steps is refused as ever."""
    spec = SPEC.model_copy(update={"steps": None, "max_minutes": 0.1})
    base = load_base(str(tiny_llama), spec)
    speed = Speed(0.1, "by earlier fits")
    plan = make_plan(spec, public_facts(base, 30), speed)
    assert plan.steps == 7  # six seconds for 60 units, in batches of 8
    # An older gateway's plan doesn't say why it is as it is, and runs all the same.
    bare = plan.model_copy(update={"base_parameters": None, "reasons": ()})
    run(tiny_llama, tmp_path, lambda first, steps: None, spec=spec, plan=bare)
    assert steps_run(tmp_path) == list(range(1, 8))
    for wrong in ({"seconds_per_unit": 0.2}, {"steps": 8}, {"seconds_per_unit": None}):
        with pytest.raises(SpecError):
            run(
                tiny_llama,
                tmp_path / "wrong",
                lambda first, steps: None,
                spec=spec,
                plan=plan.model_copy(update=wrong),
            )
