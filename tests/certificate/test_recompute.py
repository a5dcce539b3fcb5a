"""Google's accountant confirms ours, on a grid of problems, and refuses less than the truth."""

from __future__ import annotations

import time

import pytest
from dp_accounting.dp_event import ComposedDpEvent, DpEvent, GaussianDpEvent

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.certificate.recompute import TOLERANCE, check_epsilon
from taciturn.errors import CertificateError

RUNS = {
    "tiny epsilon": (0.01, 97.0, 1000),
    "usual": (0.05, 1.1, 200),
    "one big batch": (1.0, 0.7, 3),
    "long": (0.001, 0.8, 100_000),
    "loud": (0.5, 0.35, 100),
    "rare and loud": (1e-5, 0.369, 100),
    "long and quiet": (1e-4, 1.18, 100_000),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("delta", [1e-4, 1e-9])
def test_what_we_compute_is_confirmed_quickly(name: str, delta: float) -> None:
    probability, noise, steps = RUNS[name]
    event = dpsgd_event(sampling_probability=probability, noise_multiplier=noise, steps=steps)
    stated = epsilon(event, delta)
    start = time.process_time()  # of this process: the machine may be busy with others
    assert check_epsilon(event, stated, delta) == pytest.approx(stated, rel=5e-3)
    assert time.process_time() - start < 5
    with pytest.raises(CertificateError, match="promises too much"):
        check_epsilon(event, stated * 0.99, delta)


def test_composed_steps() -> None:
    fit = dpsgd_event(sampling_probability=0.05, noise_multiplier=1.1, steps=20)
    both: DpEvent = ComposedDpEvent([fit, GaussianDpEvent(4.0), fit])
    stated = epsilon(both, 1e-5)
    assert check_epsilon(both, stated, 1e-5) <= stated * (1 + TOLERANCE)
    with pytest.raises(CertificateError):
        check_epsilon(both, epsilon(fit, 1e-5), 1e-5)
