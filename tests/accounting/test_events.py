"""Events: what was run survives JSON unchanged, and nothing else gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent
from hypothesis import given
from hypothesis import strategies as st

from taciturn.accounting.events import MAX_DEPTH, dpsgd_event, event_from_dict, event_to_dict
from taciturn.errors import GuaranteeError, PrivacyParameterError, SpecError, UnknownFieldError

positive = st.floats(min_value=1e-300, max_value=1e300)
probabilities = st.floats(min_value=0, max_value=1, exclude_min=True)
counts = st.integers(min_value=1, max_value=10**12)
gaussians = st.builds(dp_event.GaussianDpEvent, positive)
leaves = (
    gaussians
    | st.builds(dp_event.PoissonSampledDpEvent, probabilities, gaussians)
    | st.just(dp_event.NoOpDpEvent())
    | st.just(dp_event.NonPrivateDpEvent())
)
events = st.recursive(
    leaves,
    lambda inner: (
        st.builds(dp_event.SelfComposedDpEvent, inner, counts)
        | st.builds(dp_event.ComposedDpEvent, st.lists(inner, max_size=3))
    ),
    max_leaves=5,
)


def _good() -> dict[str, Any]:
    return event_to_dict(dpsgd_event(sampling_probability=0.01, noise_multiplier=1.5, steps=100))


@given(events)
def test_round_trip_through_json(event: DpEvent) -> None:
    text = json.dumps(event_to_dict(event), allow_nan=False)
    again = event_from_dict(json.loads(text))
    assert again == event
    assert json.dumps(event_to_dict(again)) == text


def test_the_form_is_fixed() -> None:
    assert json.dumps(_good()) == (
        '{"type": "SelfComposedDpEvent", "event": {"type": "PoissonSampledDpEvent", '
        '"sampling_probability": 0.01, "event": {"type": "GaussianDpEvent", '
        '"noise_multiplier": 1.5}}, "count": 100}'
    )


def test_key_order_on_the_way_in_does_not_matter() -> None:
    def backwards(value: object) -> object:
        if isinstance(value, dict):
            return {key: backwards(value[key]) for key in reversed(value)}
        return value

    shuffled = backwards(_good())
    assert isinstance(shuffled, dict)
    assert event_to_dict(event_from_dict(shuffled)) == _good()


def test_all_units_in_every_step_is_no_sampling() -> None:
    event = dpsgd_event(sampling_probability=1.0, noise_multiplier=2.0, steps=3)
    assert event == dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(2.0), 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.0000001),
        ("sampling_probability", float("nan")),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", float("inf")),
        ("noise_multiplier", 10**400),
        ("steps", 0),
        ("steps", 1.5),
        ("steps", True),
    ],
)
def test_arguments_outside_their_bound(field: str, value: Any) -> None:
    arguments = {"sampling_probability": 0.1, "noise_multiplier": 1.0, "steps": 10, field: value}
    with pytest.raises(PrivacyParameterError, match=field):
        dpsgd_event(**arguments)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d | {"type": "LaplaceDpEvent"}, SpecError),
        (lambda d: d | {"type": ["SelfComposedDpEvent"]}, SpecError),
        (lambda d: {"event": d["event"], "count": 1}, SpecError),
        (lambda d: d | {"module": "os"}, UnknownFieldError),
        (lambda d: {"type": d["type"], "event": d["event"]}, SpecError),
        (lambda d: d | {"count": 0}, PrivacyParameterError),
        (lambda d: d | {"count": 2.0}, PrivacyParameterError),
        (lambda d: d | {"count": True}, PrivacyParameterError),
        (lambda d: d | {"count": "7"}, PrivacyParameterError),
        (lambda d: d | {"event": "GaussianDpEvent"}, SpecError),
        (lambda d: d | {"event": d["event"] | {"sampling_probability": 0}}, PrivacyParameterError),
        (lambda d: d["event"] | {"event": d}, SpecError),
        (lambda d: {"type": "ComposedDpEvent", "events": d}, SpecError),
        (lambda d: {"type": "GaussianDpEvent", "noise_multiplier": "1"}, PrivacyParameterError),
        (lambda d: {"type": "NoOpDpEvent", "count": 1}, UnknownFieldError),
        (lambda d: [d], SpecError),
    ],
)
def test_strict_on_the_way_in(change: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        event_from_dict(change(_good()))


def test_deep_nesting_is_refused_both_ways() -> None:
    event: DpEvent = dp_event.GaussianDpEvent(1.0)
    fields: dict[str, Any] = {"type": "GaussianDpEvent", "noise_multiplier": 1.0}
    for _ in range(MAX_DEPTH):
        event = dp_event.SelfComposedDpEvent(event, 1)
        fields = {"type": "SelfComposedDpEvent", "event": fields, "count": 1}
    with pytest.raises(SpecError, match="nested"):
        event_from_dict(fields)
    with pytest.raises(SpecError, match="nested"):
        event_to_dict(event)


def test_events_that_are_not_ours_are_refused() -> None:
    with pytest.raises(GuaranteeError, match="LaplaceDpEvent"):
        event_to_dict(dp_event.LaplaceDpEvent(1.0))
