"""Epsilon of events: an upper bound, close, monotone, and blind to how an event is written."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import special

from taciturn.accounting import compose, convolution
from taciturn.accounting.compose import ACCOUNTANT, epsilon, epsilon_curve, renyi_bound
from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.privacy_loss import Direction
from taciturn.errors import GuaranteeError, PrivacyParameterError


def run(q: float, noise: float, steps: int) -> DpEvent:
    return dpsgd_event(sampling_probability=q, noise_multiplier=noise, steps=steps)


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(min_value=math.log(low), max_value=math.log(high)).map(math.exp)


probabilities = log_uniform(1e-6, 0.999)
noises = log_uniform(0.1, 50)
counts = log_uniform(1, 1e5).map(round)
deltas = log_uniform(1e-12, 0.1)


def lower_bound(q: float, noise: float, steps: int, delta: float, size: int = 2**18) -> float:
    """Epsilon of removing a unit, too low, by other means: losses rounded down and a plain FFT.

    It is blunt, by up to `steps` times the interval of its grid, but what lies below it is wrong.
    """
    x = np.linspace(-1 - 10 * noise, 10 * noise, size)
    masses = np.diff((1 - q) * special.ndtr(x / noise) + q * special.ndtr((x + 1) / noise))
    losses = np.log1p(q * np.expm1((-0.5 - x[1:]) / noise**2))  # the lowest one of each cell
    interval = (min(steps, 4) * losses[0] - steps * losses[-1]) / size
    indices = np.floor(losses / interval).astype(int)
    lowest = int(indices.min())
    # Its lowest loss is at index 0, so that what is too long for it wraps downwards.
    spectrum = np.fft.rfft(np.bincount(indices - lowest, masses), 2 * size)
    composed = np.fft.irfft(spectrum**steps, 2 * size)
    composed = np.maximum(composed - 1e-15 * (20 + steps) * composed.max(), 0.0)
    epsilons = (steps * lowest + np.arange(2 * size)) * interval
    used = (epsilons >= 0) & (epsilons < 600)
    above = np.cumsum(composed[used][::-1])[::-1]
    discounted = np.cumsum((composed[used] * np.exp(-epsilons[used]))[::-1])[::-1]
    exceeded = epsilons[used][above - np.exp(epsilons[used]) * discounted > delta]
    return float(exceeded.max(initial=0.0))


MIXED = dp_event.ComposedDpEvent(
    [run(0.01, 1.0, 300), run(0.05, 2.0, 100), run(1.0, 20.0, 4), dp_event.NoOpDpEvent()]
)


class TestEvents:
    def test_mixed_steps_agree_with_dp_accounting(self) -> None:
        theirs = PLDAccountant().compose(MIXED).get_epsilon(1e-6)
        assert epsilon(MIXED, 1e-6) == pytest.approx(theirs, rel=1e-3)

    def test_order_and_nesting_do_not_matter(self) -> None:
        one, two = run(0.01, 1.0, 300), run(0.05, 2.0, 100)
        expected = epsilon(dp_event.ComposedDpEvent([one, two]), 1e-6)
        half = dp_event.SelfComposedDpEvent(one.event, 150)
        nested = [two, dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(half, 2)])]
        assert epsilon(dp_event.ComposedDpEvent(nested), 1e-6) == expected

    def test_nothing_run_costs_nothing(self) -> None:
        assert epsilon(dp_event.NoOpDpEvent(), 1e-6) == 0
        assert epsilon(dp_event.ComposedDpEvent([]), 1e-6) == 0
        assert epsilon(dp_event.PoissonSampledDpEvent(0.0, dp_event.GaussianDpEvent(1.0)), 0.1) == 0

    @pytest.mark.parametrize(
        "event",
        [
            dp_event.NonPrivateDpEvent(),
            dp_event.GaussianDpEvent(0.0),
            dp_event.ComposedDpEvent([run(0.1, 1.0, 5), dp_event.NonPrivateDpEvent()]),
            dp_event.SelfComposedDpEvent(
                dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(0.0)), 3
            ),
        ],
    )
    def test_no_privacy_is_an_infinite_epsilon(self, event: DpEvent) -> None:
        assert epsilon(event, 1e-6) == math.inf

    @pytest.mark.parametrize(
        "event",
        [
            dp_event.LaplaceDpEvent(1.0),
            dp_event.ComposedDpEvent([run(0.1, 1.0, 5), dp_event.UnsupportedDpEvent()]),
            dp_event.PoissonSampledDpEvent(0.1, dp_event.LaplaceDpEvent(1.0)),
            dp_event.PoissonSampledDpEvent(0.1, run(0.1, 1.0, 5)),
        ],
    )
    def test_unknown_mechanisms_are_refused(self, event: DpEvent) -> None:
        with pytest.raises(GuaranteeError):
            epsilon(event, 1e-6)

    @pytest.mark.parametrize(
        "event",
        [
            dp_event.GaussianDpEvent(-1.0),
            dp_event.GaussianDpEvent(math.nan),
            dp_event.PoissonSampledDpEvent(1.1, dp_event.GaussianDpEvent(1.0)),
            dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.0), -1),
            dp_event.SelfComposedDpEvent(run(0.1, 1.0, 10**6), 10**6),
        ],
    )
    def test_impossible_steps_are_refused(self, event: DpEvent) -> None:
        with pytest.raises(PrivacyParameterError):
            epsilon(event, 1e-6)

    @pytest.mark.parametrize("delta", [0.0, -1e-6, 1e-16, 0.6, 1.0, math.nan])
    def test_delta_outside_its_bound(self, delta: float) -> None:
        with pytest.raises(PrivacyParameterError, match="delta"):
            epsilon(run(0.1, 1.0, 5), delta)

    def test_the_accountant_is_named_with_its_version(self) -> None:
        assert "dp_accounting 0." in ACCOUNTANT
        assert "\n" not in ACCOUNTANT


class TestBound:
    @settings(max_examples=40)
    @given(probabilities, noises, counts, deltas)
    @example(0.3, 2.0, 100, 1e-5)
    @example(1.18e-6, 0.515, 1, 1.8e-12)
    def test_never_too_low(self, q: float, noise: float, steps: int, delta: float) -> None:
        assert epsilon(run(q, noise, steps), delta) >= lower_bound(q, noise, steps, delta)

    @pytest.mark.parametrize(
        ("q", "noise", "steps", "delta"),
        [
            (2.44e-4, 0.834, 74_520, 0.0068),  # the slope lies far out in the tail
            (2.36e-3, 1.11, 9084, 4.5e-6),
            (8.86e-6, 0.556, 126, 1.6e-7),  # the saddle point sees too little of the grid
            (1.26e-6, 0.66, 98_885, 6e-10),  # needs a long FFT
            (1.234e-4, 1.0, 2981, 8.3e-7),  # costs six times what its grid was chosen for
        ],
    )
    def test_rare_losses_are_resolved(
        self, q: float, noise: float, steps: int, delta: float
    ) -> None:
        coarse, fine = self._on_two_grids(run(q, noise, steps), delta)
        assert coarse == pytest.approx(fine, rel=1e-3)

    @settings(max_examples=40)
    @given(probabilities, noises, counts, deltas)
    def test_monotone_in_every_argument(
        self, q: float, noise: float, steps: int, delta: float
    ) -> None:
        # Grids differ between the two, each within 1e-3.
        def at_most(low: DpEvent, high: DpEvent) -> bool:
            return epsilon(low, delta) <= epsilon(high, delta) * (1 + 1e-3) + 1e-6

        base = run(q, noise, steps)
        assert at_most(run(q, noise * 1.1, steps), base)
        assert at_most(base, run(min(1.0, q * 1.1), noise, steps))
        assert at_most(base, run(q, noise, steps + 1 + steps // 10))
        assert at_most(base, run(1.0, noise, steps))

    @settings(max_examples=40)
    @given(probabilities, noises, counts, deltas)
    def test_below_the_renyi_bound(self, q: float, noise: float, steps: int, delta: float) -> None:
        event = run(q, noise, steps)
        assert epsilon(event, delta) <= renyi_bound(event, delta) * (1 + 1e-3) + 1e-6

    @settings(max_examples=15)
    @given(probabilities, noises, counts, deltas)
    def test_within_a_thousandth_of_a_finer_grid(
        self, q: float, noise: float, steps: int, delta: float
    ) -> None:
        self._check_on_two_grids(q, noise, steps, delta)

    @pytest.mark.slow
    @settings(max_examples=300)
    @given(log_uniform(1e-6, 0.999), log_uniform(0.02, 200), counts, deltas)
    def test_within_a_thousandth_of_a_finer_grid_at_length(
        self, q: float, noise: float, steps: int, delta: float
    ) -> None:
        self._check_on_two_grids(q, noise, steps, delta)

    def _check_on_two_grids(self, q: float, noise: float, steps: int, delta: float) -> None:
        assume(q >= 1e-4 or delta >= 1e-9)  # else a finer grid only adds rounding
        coarse, fine = self._on_two_grids(run(q, noise, steps), delta)
        if 0.02 <= fine <= 1000:
            assert coarse == pytest.approx(fine, rel=1e-3)

    @staticmethod
    def _on_two_grids(event: DpEvent, delta: float) -> tuple[float, float]:
        """Epsilon, and epsilon on a grid three times as fine (its cost is quadratic)."""
        coarse = epsilon(event, delta)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compose, "_FINE", compose._FINE / 9)
            patch.setattr(compose, "_MAX_POINTS", compose._MAX_POINTS * 4)
            patch.setattr(convolution, "_MAX_LENGTH", convolution._MAX_LENGTH * 4)
            return coarse, epsilon(event, delta)

    @pytest.mark.parametrize(
        ("q", "noise", "steps", "delta"),
        [
            (1e-6, 0.3, 100_000, 1e-12),
            (1e-6, 0.02, 100_000, 1e-9),
            (0.999, 0.5, 1, 1e-12),
            (0.999, 2.0, 100_000, 1e-12),
            (1e-6, 50.0, 1, 0.1),
            (0.3, 1e-3, 10, 1e-6),
            (0.3, 1e-5, 10, 1e-6),
            (1e-300, 1.0, 10, 1e-6),
            (0.5, 1e300, 10, 1e-6),
            (1.0, 1e-5, 10**9, 1e-15),
            (0.01, 1.0, 10**9, 1e-15),
        ],
    )
    def test_corners_have_an_answer(self, q: float, noise: float, steps: int, delta: float) -> None:
        found = epsilon(run(q, noise, steps), delta)
        assert found >= 0
        assert not math.isnan(found)

    def test_a_unit_that_is_hardly_ever_sampled_needs_no_noise(self) -> None:
        assert epsilon(run(1e-6, 0.5, 10), 1.1e-5) == 0
        assert epsilon(run(1e-6, 0.5, 10), 0.9e-6) > 0

    def test_adding_a_unit_counts_too(self) -> None:
        """dp_accounting takes the worse direction as well; here both are near each other."""
        for event in (run(0.3, 30.0, 2000), run(0.9, 10.0, 50)):
            theirs = PLDAccountant().compose(event).get_epsilon(1e-5)
            assert epsilon(event, 1e-5) == pytest.approx(theirs, rel=1e-3)


class TestCurve:
    @settings(max_examples=4)
    @given(probabilities, noises, log_uniform(50, 1e4).map(round), deltas)
    @example(math.exp(-13), math.exp(-1), 55, math.exp(-10))  # too small to be resolved
    @example(math.exp(-8), math.exp(-1), 55, math.exp(-6))  # its prefixes need finer grids
    @example(1.4e-6, 0.21, 63, 2.3e-5)  # the same: epsilon leaps between half of it and all
    @example(1.26e-6, 0.66, 10_000, 7.6e-10)  # a long, thin tail
    def test_bounds_every_prefix_of_the_run(
        self, q: float, noise: float, steps: int, delta: float
    ) -> None:
        marks = [1, steps // 7, steps // 2, steps - 1, steps]
        curve = epsilon_curve(
            sampling_probability=q, noise_multiplier=noise, steps=marks, delta=delta
        )
        assert curve == sorted(curve)
        assert curve[-1] == epsilon(run(q, noise, steps), delta)
        for mark, value in zip(marks, curve, strict=True):
            assert value >= lower_bound(q, noise, mark, delta)
            prefix = epsilon(run(q, noise, mark), delta)
            # An upper bound as well, not always promised to be near the exact value.
            promised = prefix >= 0.02 and (q >= 1e-4 or delta >= 1e-9)
            assert not promised or value >= prefix * (1 - 1e-3)
            assert curve[-1] < 0.01 or value <= prefix + 0.01 * curve[-1]

    def test_without_sampling_it_is_exact(self) -> None:
        curve = epsilon_curve(
            sampling_probability=1.0, noise_multiplier=10.0, steps=[1, 5, 9], delta=1e-5
        )
        assert curve == [epsilon(run(1.0, 10.0, steps), 1e-5) for steps in (1, 5, 9)]

    def test_steps_in_any_order_and_repeated(self) -> None:
        marks = [50, 10, 50, 20]
        curve = epsilon_curve(
            sampling_probability=0.1, noise_multiplier=1.0, steps=marks, delta=1e-5
        )
        assert curve[0] == curve[2] == max(curve)
        assert curve[1] < curve[3] < curve[0]
        assert not epsilon_curve(
            sampling_probability=0.1, noise_multiplier=1.0, steps=[], delta=1e-5
        )

    def test_tens_of_points_take_a_second_or_two(self) -> None:
        start = time.process_time()
        epsilon_curve(
            sampling_probability=0.01,
            noise_multiplier=1.0,
            steps=range(25, 1001, 25),
            delta=1e-5,
        )
        assert time.process_time() - start < 2

    def test_steps_below_one_are_refused(self) -> None:
        with pytest.raises(PrivacyParameterError, match="steps"):
            epsilon_curve(sampling_probability=0.1, noise_multiplier=1.0, steps=[0, 5], delta=1e-5)


@pytest.mark.parametrize("q", [0.02, 0.4])
def test_both_directions_are_computed(q: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing a unit costs more wherever anybody looked, so adding one could be forgotten.

    The answer is the same if the two are swapped.
    """
    event = dpsgd_event(sampling_probability=q, noise_multiplier=0.8, steps=20)
    expected, bound = epsilon(event, 1e-5), renyi_bound(event, 1e-5)
    quadratures, grid = compose._quadratures, compose.connect_the_dots
    other: dict[str, Direction] = {"add": "remove", "remove": "add"}
    monkeypatch.setattr(compose, "_quadratures", lambda to, steps: quadratures(other[to], steps))
    monkeypatch.setattr(
        compose, "connect_the_dots", lambda kind, step, to: grid(kind, step, other[to])
    )
    assert epsilon(event, 1e-5) == pytest.approx(expected, rel=1e-3)
    assert renyi_bound(event, 1e-5) == bound
