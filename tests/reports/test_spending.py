"""Steps compose: more costs more, the order does not matter, units must agree."""

from __future__ import annotations

import pytest
from dp_accounting.pld import PLDAccountant

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event, event_from_dict, event_to_dict
from taciturn.errors import GuaranteeError, SpecError
from taciturn.reports.privacy import PrivacyReport, PrivateStep
from taciturn.reports.spending import composed, epsilon_of_steps, with_steps

FIT = dpsgd_event(sampling_probability=0.1, noise_multiplier=1.2, steps=10)
RELEASE = dpsgd_event(sampling_probability=1.0, noise_multiplier=4.0, steps=1)


def step(event: object, unit: str = "patient") -> PrivateStep:
    fields = event if isinstance(event, dict) else event_to_dict(event)  # type: ignore[arg-type]
    return PrivateStep(
        purpose="fit", dp_event=fields, privacy_unit=unit, max_records_per_unit=8, n_units=100
    )


def test_one_step_is_itself() -> None:
    assert composed([step(FIT)]) == FIT
    assert epsilon_of_steps([step(FIT)], 1e-5) == epsilon(FIT, 1e-5)
    assert epsilon_of_steps([], 1e-5) == 0


def test_two_steps_agree_with_dp_accounting() -> None:
    both = [step(FIT), step(RELEASE)]
    theirs = PLDAccountant().compose(FIT).compose(RELEASE).get_epsilon(1e-5)
    assert epsilon_of_steps(both, 1e-5) == pytest.approx(theirs, rel=2e-3)
    assert epsilon_of_steps(both[::-1], 1e-5) == pytest.approx(epsilon_of_steps(both, 1e-5))


def test_different_units_do_not_compose() -> None:
    with pytest.raises(SpecError, match="privacy_unit='visit' differs from 'patient'"):
        composed([step(FIT), step(RELEASE, "visit")])


def test_a_step_without_privacy_is_refused() -> None:
    with pytest.raises(GuaranteeError):
        epsilon_of_steps([step({"type": "NonPrivateDpEvent"})], 1e-5)


def report(**fields: object) -> PrivacyReport:
    values: dict[str, object] = {
        "guarantee": "differential privacy",
        "epsilon": epsilon(FIT, 1e-5),
        "delta": 1e-5,
        "privacy_unit": "patient",
        "max_records_per_unit": 8,
        "n_units": 100,
        "mechanism": "DP-SGD",
        "steps": 10,
        "expected_batch_size": 10,
        "dp_event": event_to_dict(FIT),
        "base_model": "x",
        "trainable_parameters": 1,
        "taciturn_version": "0",
    }
    return PrivacyReport.model_validate(values | fields)


def test_a_report_grows() -> None:
    grown = with_steps(report(), [step(FIT), step(RELEASE)])
    assert grown.epsilon == epsilon_of_steps([step(FIT), step(RELEASE)], 1e-5)
    assert grown.dp_event is not None
    assert epsilon(event_from_dict(grown.dp_event), 1e-5) == grown.epsilon
    assert grown.spent == grown.private_steps


def test_old_reports_have_spent_their_event() -> None:
    (only,) = report().spent
    assert only.dp_event == event_to_dict(FIT)
    assert only.dataset_commitment is None


def test_no_guarantee_stays_none() -> None:
    bare = report(guarantee="none", epsilon=None, delta=None, dp_event=None)
    assert bare.spent == ()
    assert with_steps(bare, [step(RELEASE)]).epsilon is None
