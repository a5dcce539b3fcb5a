"""The trade-off curve: never below what an attacker attains, and close to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from taciturn.accounting import tradeoff as module
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.accounting.tradeoff import Tradeoff, from_epsilon_delta, tradeoff
from taciturn.errors import GuaranteeError, PrivacyParameterError

FPRS = np.concatenate(([0.0], np.logspace(-6, -1, 31), np.linspace(0.12, 1, 23)))
RUNS = ((0.01, 1.0, 1000), (0.1, 2.0, 60), (0.3, 10.0, 50), (0.02, 1.0, 1), (0.001, 0.7, 500))


def run(q: float, noise: float, steps: int) -> DpEvent:
    return dpsgd_event(sampling_probability=q, noise_multiplier=noise, steps=steps)


def rates(bound: Tradeoff, fprs: Floats = FPRS) -> Floats:
    return np.array([bound.true_positive_rate(fpr) for fpr in fprs])


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(min_value=math.log(low), max_value=math.log(high)).map(math.exp)


runs = st.builds(
    run, log_uniform(1e-4, 0.999), log_uniform(0.3, 50), log_uniform(1, 1e4).map(round)
)


def of_estimate(q: float, noise: float, steps: int, *, pessimistic: bool) -> Floats:
    """TPR at FPRS by dp_accounting: the larger one of removing and adding."""
    pld = privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=q,
        value_discretization_interval=1e-4,
        pessimistic_estimate=pessimistic,
    ).self_compose(steps)
    curves = []
    for pmf in (pld._pmf_remove.to_dense_pmf(), pld._pmf_add.to_dense_pmf()):
        masses = np.maximum(pmf._probs[::-1], 0.0)
        losses = (pmf._lower_loss + np.arange(len(masses))[::-1]) * 1e-4
        # Mass that truncation puts below their grid counts for neither side here.
        tpr = np.concatenate(([0.0], pmf._infinity_mass + np.cumsum(masses)))
        fpr = np.concatenate(([0.0], np.cumsum(masses * np.exp(-losses))))
        curves.append(np.interp(FPRS, fpr, tpr))
    found: Floats = np.maximum(*curves)
    return found


class TestGaussian:
    @pytest.mark.parametrize("mu", [0.01, 0.1, 1.0, 3.0, 8.0])
    def test_is_the_closed_form(self, mu: float) -> None:
        """Dong, Roth & Su 2022, equation 6: f(a) = Phi(Phi^-1(1 - a) - mu)."""
        bound = tradeoff(dp_event.GaussianDpEvent(1 / mu))
        exact = stats.norm.sf(stats.norm.isf(FPRS) - mu)
        assert (rates(bound) >= exact - 1e-12).all()
        np.testing.assert_allclose(rates(bound), exact, rtol=1e-5, atol=1e-12)
        assert bound.advantage == pytest.approx(2 * stats.norm.cdf(mu / 2) - 1, rel=1e-9)

    def test_many_steps_are_one_with_less_noise(self) -> None:
        many = tradeoff(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(20.0), 100))
        np.testing.assert_allclose(rates(many), rates(tradeoff(dp_event.GaussianDpEvent(2.0))))


class TestSampledGaussian:
    @pytest.mark.parametrize(("q", "noise", "steps"), RUNS)
    def test_lies_between_dp_accountings_estimates(
        self, q: float, noise: float, steps: int
    ) -> None:
        found = rates(tradeoff(run(q, noise, steps)))
        above = of_estimate(q, noise, steps, pessimistic=True)
        below = of_estimate(q, noise, steps, pessimistic=False)
        assert (found >= below - 1e-9).all()
        assert (found <= above * (1 + 2e-3) + 1e-9).all()

    def test_agrees_with_riskcal(self) -> None:
        """Kulynych et al. 2024; from FPR 1% on.

        Below, rounding of the grids that riskcal 1.5.1 adds up understates the attacker: at FPR
        1e-6 it has a TPR of 1e-13 for the first of these runs.
        """
        conversions = pytest.importorskip("riskcal.analysis.conversions")
        for q, noise, steps in RUNS:
            pld = privacy_loss_distribution.from_gaussian_mechanism(
                noise, sampling_prob=q, value_discretization_interval=1e-4
            ).self_compose(steps)
            fprs = FPRS[FPRS >= 0.01]
            theirs = 1 - conversions.get_beta_from_pld(pld, alpha=fprs)
            ours = tradeoff(run(q, noise, steps))
            np.testing.assert_allclose(rates(ours, fprs), theirs, rtol=2e-3)
            assert ours.advantage == pytest.approx(
                conversions.get_advantage_from_pld(pld), rel=2e-3
            )

    @pytest.mark.statistical
    def test_is_what_the_best_attack_attains(self) -> None:
        """Neyman and Pearson's test on simulated runs; a little more or less noise is told apart.

        300,000 runs: the deviation of a TPR near 1/2 is 9e-4.
        """
        q, noise, steps, count = 0.2, 1.0, 8, 300_000
        generator = np.random.default_rng(20)
        step = SampledGaussian(q, noise)
        without = noise * generator.standard_normal((steps, count))
        joined = generator.random((steps, count)) < q
        with_unit = noise * generator.standard_normal((steps, count)) - joined
        negatives, positives = (step.loss(x).sum(axis=0) for x in (without, with_unit))
        remove = tradeoff(run(q, noise, steps)).curves[0]
        for fpr in (0.01, 0.1, 0.3):
            attained = float((positives > np.quantile(negatives, 1 - fpr)).mean())
            # The quantile's own error moves the TPR by the curve's slope.
            slope = float(remove.at(fpr * 1.05) - remove.at(fpr * 0.95)) / (0.1 * fpr)
            variance = attained * (1 - attained) + slope**2 * fpr * (1 - fpr)
            error = 4 * math.sqrt(variance / count)
            assert attained == pytest.approx(float(remove.at(fpr)), abs=error)
            for other, sign in ((noise * 1.05, 1), (noise / 1.05, -1)):
                wrong = float(tradeoff(run(q, other, steps)).curves[0].at(fpr))
                assert sign * (attained - wrong) > error

    @pytest.mark.slow
    @settings(max_examples=8)
    @given(runs)
    def test_a_finer_grid_changes_little(self, event: DpEvent) -> None:
        coarse = rates(tradeoff(event))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_ACCURACY", module._ACCURACY / 64)
            patch.setattr(module, "_MAX_POINTS", module._MAX_POINTS * 2)
            fine = rates(tradeoff(event))
        assert (coarse >= fine - 1e-8).all()  # a longer FFT may round more
        assert (coarse <= fine * (1 + 1e-3) + 1e-8).all()

    def test_the_two_verdicts_are_each_others_inverse(self) -> None:
        """ "It was not in" is found with the same test, its errors exchanged."""
        was_in, was_not = tradeoff(run(0.02, 1.0, 20)).curves
        fnr = 1 - was_in.at(FPRS[1:-1])
        np.testing.assert_allclose(1 - was_not.at(fnr), FPRS[1:-1], rtol=2e-3)


class TestBounds:
    @settings(max_examples=12)
    @given(runs, log_uniform(1e-9, 0.1))
    def test_never_worse_than_epsilon_and_delta(self, event: DpEvent, delta: float) -> None:
        known = from_epsilon_delta(epsilon(event, delta), delta)
        bound = tradeoff(event)
        assert (rates(bound) <= rates(known) * (1 + 1e-9) + 1e-9).all()
        assert bound.advantage <= known.advantage * (1 + 1e-9) + 1e-9

    @settings(max_examples=12)
    @given(runs)
    def test_is_a_tradeoff_function(self, event: DpEvent) -> None:
        bound = tradeoff(event)
        found = rates(bound)
        assert (np.diff(found) >= 0).all()
        assert (found >= FPRS).all()
        assert found[-1] == 1
        assert found[0] < 1e-9 or bound.advantage > 0.999  # e^-700 and less counts as FPR 0
        assert bound.advantage >= (found - FPRS).max()
        for curve in bound.curves:
            assert (np.diff(curve.fpr_V) >= 0).all()
            assert (np.diff(curve.tpr_V) >= 0).all()

    @settings(max_examples=8)
    @given(log_uniform(1e-4, 0.9), log_uniform(0.3, 50), log_uniform(1, 1e3).map(round))
    def test_more_noise_or_fewer_steps_tell_less(self, q: float, noise: float, steps: int) -> None:
        found = rates(tradeoff(run(q, noise, steps))) * (1 + 1e-3) + 1e-9
        assert (rates(tradeoff(run(q, noise * 1.2, steps))) <= found).all()
        assert (found * (1 + 1e-3) <= rates(tradeoff(run(q, noise, 3 * steps))) * 1.01 + 1e-6).all()

    def test_false_negatives_are_what_is_not_found(self) -> None:
        bound = tradeoff(run(0.1, 1.0, 10))
        for alpha in (0.0, 0.001, 0.3, 1.0):
            assert bound.false_negative_rate(alpha) == 1 - bound.true_positive_rate(alpha)

    @pytest.mark.parametrize(
        ("q", "noise", "steps"),
        [
            (1e-12, 1.0, 10),
            (1e-6, 0.3, 100_000),
            (1e-4, 40.0, 10**9),
            (0.999, 0.5, 1),
            (0.01, 1.0, 10**9),
            (1.0, 1e-5, 10**9),
            (0.3, 1e-3, 10),
            (0.5, 1e300, 10),
        ],
    )
    def test_corners_have_an_answer(self, q: float, noise: float, steps: int) -> None:
        bound = tradeoff(run(q, noise, steps))
        found = rates(bound)
        assert (found >= FPRS).all()
        assert (found <= 1).all()
        assert 0 <= bound.advantage <= 1

    def test_a_composition_counts_every_part(self) -> None:
        parts = run(0.1, 1.0, 20), dp_event.GaussianDpEvent(2.0)
        both = rates(tradeoff(dp_event.ComposedDpEvent(list(parts))))
        for part in parts:
            assert (both[1:-1] > rates(tradeoff(part))[1:-1]).all()

    @pytest.mark.parametrize("fpr", [-0.1, 1.1, math.nan])
    def test_rates_outside_their_bound(self, fpr: float) -> None:
        with pytest.raises(PrivacyParameterError, match="false-positive rate"):
            tradeoff(run(0.1, 1.0, 10)).false_negative_rate(fpr)


class TestExtremes:
    def test_nothing_run_tells_nothing(self) -> None:
        bound = tradeoff(dp_event.NoOpDpEvent())
        assert bound.advantage == 0
        np.testing.assert_array_equal(rates(bound), FPRS)

    def test_without_privacy_everything_can_be_told(self) -> None:
        bound = tradeoff(dp_event.ComposedDpEvent([run(0.1, 1.0, 5), dp_event.NonPrivateDpEvent()]))
        assert bound.advantage == 1
        assert bound.true_positive_rate(0) == 1

    def test_unknown_mechanisms_are_refused(self) -> None:
        with pytest.raises(GuaranteeError):
            tradeoff(dp_event.LaplaceDpEvent(1.0))


class TestFromEpsilonDelta:
    @pytest.mark.parametrize(
        ("spent", "delta"), [(0.0, 0.0), (0.1, 0.0), (1.0, 1e-3), (3.0, 0.2), (600.0, 1e-5)]
    )
    def test_is_the_two_lines(self, spent: float, delta: float) -> None:
        bound = from_epsilon_delta(spent, delta)
        with np.errstate(over="ignore"):
            upper = np.minimum(1.0, delta + math.exp(min(spent, 700)) * FPRS)
        lower = 1 - np.maximum(0.0, math.exp(-spent) * (1 - delta - FPRS))
        np.testing.assert_allclose(rates(bound), np.minimum(upper, lower), rtol=1e-12, atol=1e-15)
        advantage = delta + (1 - delta) * math.tanh(spent / 2)
        assert bound.advantage == pytest.approx(advantage, abs=1e-12)

    def test_no_guarantee_is_everything(self) -> None:
        assert from_epsilon_delta(math.inf, 0.0).advantage == 1
        assert from_epsilon_delta(0.0, 1.0).advantage == 1

    @pytest.mark.parametrize(("spent", "delta"), [(-1.0, 0.0), (math.nan, 0.0), (1.0, 1.5)])
    def test_outside_their_bounds(self, spent: float, delta: float) -> None:
        with pytest.raises(PrivacyParameterError):
            from_epsilon_delta(spent, delta)
