"""The plan follows from the spec and public facts, and what it promises is what runs."""

from __future__ import annotations

from typing import Any

import pytest

from taciturn.accounting.compose import epsilon as epsilon_of
from taciturn.engine.training.mechanism import planned_mechanism
from taciturn.errors import PrivacyParameterError, SpecError
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import Speed, TrainingPlan, alternatives, make_plan, other_times
from taciturn.spec import FitSpec, parse

FACTS = PublicFacts(n_units=1000, base_model="tiny", base_parameters=5_000_000, context_length=512)


SPEED = Speed(0.01, "measured in a test")


def plan(**fields: Any) -> TrainingPlan:
    return make_plan(parse(FitSpec, {"target_epsilon": 3, **fields}), FACTS, SPEED)


def test_epsilon_is_that_of_the_mechanism_that_runs() -> None:
    made = plan(epochs=4, batch_size=100)
    assert made.privacy is not None
    assert made.steps == 40
    mechanism = planned_mechanism(made, ("w",))
    assert epsilon_of(mechanism.dp_event, made.privacy.delta) == made.privacy.epsilon
    assert 3 * (1 - 2e-3) <= made.privacy.epsilon <= 3
    assert mechanism.sampling_probability == 0.1
    assert mechanism.expected_batch_size == made.batch_size


def test_default_delta_is_a_power_of_ten_at_most_a_tenth_of_a_unit() -> None:
    made = plan()
    assert made.privacy is not None
    assert made.privacy.delta == 1e-4


def test_unlimited_has_no_mechanism() -> None:
    made = plan(target_epsilon="unlimited")
    assert made.privacy is None
    with pytest.raises(PrivacyParameterError, match="unlimited"):
        planned_mechanism(made, ("w",))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target_epsilon": None}, PrivacyParameterError, "target_epsilon is not set"),
        ({"batch_size": 1001}, PrivacyParameterError, "exceeds the data's n_units=1000"),
        ({"delta": 0.01}, PrivacyParameterError, "delta=0.01"),
        ({"max_tokens": 513}, SpecError, "exceeds the model's context of 512"),
    ],
)
def test_impossible_plans_say_value_bound_and_remedy(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(**fields)


@pytest.mark.parametrize("method", ["auto", "lora", "full"])
@pytest.mark.parametrize("epsilon", [3, "unlimited"])
def test_auto_says_what_it_chose_and_why(method: str, epsilon: Any) -> None:
    made = plan(method=method, target_epsilon=epsilon)
    assert made.adapter.method in ("lora", "full")
    assert made.reasons
    assert all(len(reason) > 10 for reason in made.reasons)


def test_choices_of_the_user_win_over_defaults() -> None:
    made = plan(
        method="lora",
        r=3,
        alpha=5.0,
        target_modules=("q_proj",),
        learning_rate=0.5,
        l2_clip_norm=0.25,
        steps=7,
        batch_size=11,
    )
    assert (made.adapter.r, made.adapter.alpha, made.adapter.target_modules) == (
        3,
        5.0,
        ("q_proj",),
    )
    assert (made.learning_rate, made.steps, made.batch_size) == (0.5, 7, 11)
    assert made.privacy is not None
    assert made.privacy.l2_clip_norm == 0.25


def test_less_noise_allows_larger_steps_up_to_a_bound() -> None:
    length = {"batch_size": 512, "steps": 40}
    rates = [
        plan(target_epsilon=epsilon, **length).learning_rate
        for epsilon in (0.1, 1, 3, 8, 100, 1000)
    ]
    assert rates == sorted(rates)
    assert len(set(rates[:4])) == 4
    assert rates[-1] == rates[-2] <= 2e-2


def test_plan_does_not_depend_on_rows() -> None:
    assert plan() == plan()


def test_nearby_choices_keep_their_epsilon() -> None:
    spec = parse(FitSpec, {"target_epsilon": 3, "epochs": 4, "batch_size": 100})
    made = make_plan(spec, FACTS)
    rows = alternatives(spec, made)
    assert made.privacy is not None
    assert {row.epsilon for row in rows} == {1.5, 3, 6}
    same = [row for row in rows if (row.epsilon, row.steps, row.batch_size) == (3, 40, 100)]
    assert [row.noise_multiplier for row in same] == [made.privacy.noise_multiplier]


def test_plan_survives_json() -> None:
    made = plan()
    assert TrainingPlan.model_validate_json(made.model_dump_json()) == made


def test_a_plan_reads_as_lines() -> None:
    """In a notebook, a prompt and a log it is what people read, not a constructor's call."""
    made = plan()
    assert made.privacy is not None
    assert made.worth is not None
    lines = str(made).splitlines()
    assert repr(made) == str(made)
    assert lines[0] == "units (public): 1000"
    assert f"noise multiplier: {made.privacy.noise_multiplier:.6g}" in lines
    assert f"worth: {made.worth.text}" in lines
    assert lines[-len(made.reasons) :] == [f"method: {reason}" for reason in made.reasons]
    assert "guarantee: none (target_epsilon is unlimited)" in str(plan(target_epsilon="unlimited"))


def test_a_time_limit_decides_batch_and_steps_and_says_why() -> None:
    made = plan(max_minutes=1)
    assert 0.9 * 6000 < made.units_seen <= 6000  # a minute of 0.01 s each
    assert made.seconds_per_unit == 0.01
    assert any("time for about 6,000 units, 0.01 s each, measured in a test" in reason
               for reason in made.reasons)  # fmt: skip
    assert made == plan(max_minutes=1)
    assert plan(max_minutes=2).units_seen > made.units_seen
    assert plan(max_minutes=1, batch_size=50).steps == 120
    assert plan(max_minutes=1, steps=60).batch_size == 100
    assert plan(max_minutes=1, target_epsilon="unlimited").units_seen <= 3008
    assert plan(max_minutes=0.1, target_epsilon="unlimited").units_seen <= 600


def test_a_speed_changes_nothing_without_a_limit() -> None:
    spec = parse(FitSpec, {"target_epsilon": 3})
    assert make_plan(spec, FACTS) == make_plan(spec, FACTS, SPEED)
    assert make_plan(spec, FACTS).seconds_per_unit is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_minutes": 1, "batch_size": 10, "steps": 5}, "leave one of them out"),
        ({"max_minutes": 1, "epochs": 3}, "epochs=3 .* max_minutes=1 limits that; give one"),
        ({"max_minutes": 0}, "max_minutes"),
        ({"max_minutes": 0.01, "batch_size": 100}, "sees 100 at least .* give at least"),
        ({"max_minutes": 0.01, "steps": 70}, "time for 60 units, .* at least max_minutes=0.012"),
    ],
)
def test_a_limit_that_cannot_be_met_says_what_could(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(parse(FitSpec, {"target_epsilon": 3, **fields}), FACTS, SPEED)


def test_the_limit_that_an_error_names_is_enough() -> None:
    with pytest.raises(SpecError) as refused:
        plan(max_minutes=0.01, batch_size=777)
    named = float(str(refused.value).rsplit("=", 1)[1])
    assert plan(max_minutes=named, batch_size=777).steps == 1


def test_without_a_speed_a_limit_is_refused() -> None:
    spec = parse(FitSpec, {"target_epsilon": 3, "max_minutes": 5})
    with pytest.raises(SpecError, match="max_minutes=5: how long a unit takes is not known"):
        make_plan(spec, FACTS)


@pytest.mark.parametrize(
    "fields", [{}, {"batch_size": 10, "steps": 4}, {"batch_size": 7}, {"max_minutes": 0.5}]
)
def test_other_times_have_their_limits_and_what_they_buy(fields: dict[str, Any]) -> None:
    spec = parse(FitSpec, {"target_epsilon": 3, **fields})
    made = make_plan(spec, FACTS, SPEED)
    rows = other_times(spec, FACTS, made)
    assert [row.times for row in rows] == [0.5, 1, 2, 4]
    assert (rows[1].batch_size, rows[1].steps) == (made.batch_size, made.steps)
    assert rows[1].remaining_noise == made.remaining_noise
    assert all(row.units <= max(1, row.times * made.units_seen) for row in rows)
    noises = [row.remaining_noise for row in rows]
    assert noises == sorted(noises, reverse=True)
    shares = [row.share for row in rows]
    assert shares == sorted(shares, key=lambda share: share or 0)
    assert None not in shares
    assert other_times(spec, FACTS, plan(target_epsilon="unlimited")) == ()


def test_a_plan_says_what_it_is_worth_without_any_row() -> None:
    worth = plan().worth
    assert worth is not None
    assert "of what an ordinary fit would learn" in worth.text
    assert plan(target_epsilon="unlimited").worth is None
    full = plan(method="full").worth
    assert full is not None
    assert full.low is None
    old = plan().model_copy(update={"base_parameters": None})
    assert old.worth is None
