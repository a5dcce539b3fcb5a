"""What is learned from public text: never worse than the start, and by figures of public text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch

from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.training import public
from taciturn.engine.training.public import PublicStage, PublicText, simulated
from taciturn.engine.training.trainable import trainable
from taciturn.errors import DataError, MissingColumnError
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import (
    RATE_FACTORS,
    TrainingPlan,
    adapter_plan,
    make_plan,
    public_plan,
)
from taciturn.spec import FitSpec

TEXTS = [f"Case {i}: a cough and fever." for i in range(40)]
FACTS = PublicFacts(36, "model", 10**6, 160)


def spec_of(data: object = TEXTS, **fields: Any) -> FitSpec:
    given = {"target_epsilon": 8, "method": "lora", "r": 2, "max_tokens": 16, "steps": 4}
    return FitSpec(**{**given, "public_data": data, **fields})


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> LoadedModel:
    return load_base(str(tiny_llama), FitSpec())


def opened(base: LoadedModel, folder: Path, spec: FitSpec, seed: int = 0) -> PublicText:
    PublicText.prepare(spec, base.tokenizer, 16, folder, base.vocabulary)
    return PublicText.open(folder, seed)


def words(base: LoadedModel, text: PublicText) -> list[str]:
    parts = (text.fitted, text.held_out)
    return [
        base.tokenizer.decode(each.records(unit)[0].input_ids, skip_special_tokens=True)
        for each in parts
        for unit in range(each.n_units)
    ]


def test_a_tenth_is_held_out_and_all_of_it_is_named(base: LoadedModel, tmp_path: Path) -> None:
    spec = spec_of()
    text = opened(base, tmp_path / "one", spec)
    assert (text.fitted.n_units, text.held_out.n_units, text.about.records) == (36, 4, 40)
    assert sorted(words(base, text)) == sorted(TEXTS)
    again = opened(base, tmp_path / "two", spec_of(pd.DataFrame({"text": TEXTS})))
    assert again.about == text.about
    other = opened(base, tmp_path / "three", spec_of(["A sprain.", *TEXTS[1:]]))
    assert other.about.sha256 != text.about.sha256


COLUMNS = pd.DataFrame({"note": TEXTS, "title": ["A title."] * 40, "text": ["A text."] * 40})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"public_text_field": "title", "text_field": "note"}, "A title."),
        ({"text_field": "note"}, "Case 0: a cough and fever."),
        ({"text_field": "diagnosis"}, "A text."),
        ({"question_field": "title", "answer_field": "diagnosis"}, "A text."),
        ({}, "A text."),
    ],
)
def test_columns_are_those_of_the_private_data_or_those_it_has(
    fields: dict[str, Any], expected: str, base: LoadedModel, tmp_path: Path
) -> None:
    reader = pa.Table.from_pandas(COLUMNS).to_reader(7)  # can be read once
    assert expected in words(base, opened(base, tmp_path / "text", spec_of(reader, **fields)))


def test_text_that_cannot_be_learned_from(base: LoadedModel, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, data: object, **fields: Any) -> None:
        with pytest.raises(error, match=message):
            opened(base, tmp_path / "text", spec_of(data, **fields))

    both = COLUMNS[["note", "title"]]
    refused(MissingColumnError, "public_data: .*with public_text_field", both)
    refused(MissingColumnError, "public_data: .*nott", both, public_text_field="nott")
    refused(DataError, "has 19 records; at least 20", TEXTS[:19])
    refused(DataError, "no rows", [])


def stage_of(base_name: Path, folder: Path, **fields: Any) -> tuple[PublicStage, FitSpec]:
    spec = spec_of(**fields)
    base = load_base(str(base_name), spec)
    text = opened(base, folder, spec)
    _, loss = trainable(base, spec, adapter_plan(spec, FACTS), ALONE, None, text.rows())
    return PublicStage(loss, text, 2048, Form.AUTO, ALONE), spec


def ordinary(spec: FitSpec, **changes: Any) -> TrainingPlan:
    plan = public_plan(spec, adapter_plan(spec, FACTS), FACTS)
    return plan.model_copy(update={"steps": 16, **changes})


def weights(stage: PublicStage) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone() for name, value in trainable_parameters(stage.loss).items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", ["auto", "lora", "full"])
def test_held_out_text_is_predicted_better(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    stage, spec = stage_of(tiny_llama, tmp_path / "text", method=method, r=None)
    before = stage._judged(16)
    stage.fit(ordinary(spec))
    assert stage._judged(16) < before - 0.01


def test_never_worse_than_the_start(tiny_llama: Path, tmp_path: Path) -> None:
    stage, spec = stage_of(tiny_llama, tmp_path / "text", method="full", r=None)
    start = weights(stage)
    stage.fit(ordinary(spec, learning_rate=1e3))
    assert same(weights(stage), start)


def test_the_best_of_the_way_is_kept(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged at the start, after short trials of three rates, of which the second one is taken,
    and after each of the 16 steps: the second is the best.
    """
    stage, spec = stage_of(tiny_llama, tmp_path / "text")
    seen: list[dict[str, torch.Tensor]] = []

    def judged(self: PublicStage, max_tokens: int) -> float:
        seen.append(weights(self))
        return [9.0, 8.9, 8.8, math.inf, 8.0, 7.0, 7.5, math.inf, 7.1][len(seen) - 1]

    def begin(self: PublicStage, plan: TrainingPlan) -> Any:
        begun.append((plan.steps, plan.learning_rate))
        return real(self, plan)

    real, begun = PublicStage._begin, list[tuple[int, float]]()
    monkeypatch.setattr(PublicStage, "_begin", begin)

    monkeypatch.setattr(PublicStage, "_judged", judged)
    plan = ordinary(spec)
    stage.fit(plan)
    rates = [(steps, rate / plan.learning_rate) for steps, rate in begun]
    assert rates == [(2, 1.0), (2, 4.0), (2, 0.25), (16, 4.0)]
    assert len(seen) == 9  # three in a row were not better
    assert same(weights(stage), seen[5])
    assert not same(weights(stage), seen[8])


def test_the_rate_is_the_one_that_is_judged_best(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, spec = stage_of(tiny_llama, tmp_path / "text", batch_size=6)
    plan, start, tried = make_plan(spec, FACTS), weights(stage), []

    def judged(self: PublicStage, max_tokens: int) -> float:
        assert not same(weights(self), start)
        return abs(tried[-1].learning_rate / plan.learning_rate - 0.3)

    def run(self: PublicStage, trial: TrainingPlan) -> None:
        tried.append(trial)
        real(self, trial)

    real = PublicStage._simulate
    monkeypatch.setattr(PublicStage, "_judged", judged)
    monkeypatch.setattr(PublicStage, "_simulate", run)
    assert stage.rate_factor(plan) == 0.25
    assert [each.learning_rate / plan.learning_rate for each in tried] == list(RATE_FACTORS)
    assert same(weights(stage), start)


def test_rates_that_are_no_number_lose(tiny_llama: Path, tmp_path: Path) -> None:
    stage, spec = stage_of(tiny_llama, tmp_path / "text", batch_size=6)
    for value in trainable_parameters(stage.loss).values():
        value.data.fill_(math.nan)
    assert stage._judged(16) == math.inf
    assert stage.rate_factor(make_plan(spec, FACTS)) == 1.0


@pytest.mark.parametrize("steps", [4, 40, 360])
def test_a_trial_has_the_noise_of_the_plan(steps: int) -> None:
    facts = PublicFacts(3000, "model", 10**6, 160)
    plan = make_plan(spec_of(steps=steps, batch_size=512), facts)
    trial = simulated(plan, 0.5, 900)
    assert plan.privacy is not None
    assert trial.privacy is not None
    assert (trial.n_units, trial.batch_size, trial.steps) == (900, 16, min(40, steps))

    def noise(each: TrainingPlan) -> float:
        """On the mean of all steps' gradients, in clip norms."""
        assert each.privacy is not None
        return each.privacy.noise_multiplier / each.batch_size / math.sqrt(each.steps)

    def walk(each: TrainingPlan) -> float:
        """How far AdamW goes in nothing but noise."""
        return each.learning_rate * math.sqrt(each.steps)

    fewer = steps / trial.steps
    assert noise(trial) == pytest.approx(noise(plan))
    assert walk(trial) == pytest.approx(walk(plan) * 0.5)
    assert trial.privacy.noise_multiplier / 16 == pytest.approx(
        plan.privacy.noise_multiplier / 512 / math.sqrt(fewer)
    )


def test_the_fit_is_of_bounded_length() -> None:
    many = PublicFacts(10**6, "model", 10**6, 160)
    plan = public_plan(spec_of(), adapter_plan(spec_of(), many), many)
    assert plan.privacy is None
    assert plan.steps == 640
    assert public._MOST_JUDGED <= 200
