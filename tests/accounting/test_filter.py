"""The filter never admits more than its budget, in whatever order it is spent, nor much less."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.dp_event import ComposedDpEvent, DpEvent, GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.accounting import renyi
from taciturn.accounting.calibrate import noise_multiplier
from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event
from taciturn.accounting.filter import (
    ORDERS,
    UNITS_PER_NAT,
    RenyiCost,
    RenyiFilter,
    event_cost,
    step_cost,
)
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.errors import GuaranteeError, PrivacyParameterError

runs = st.builds(
    dpsgd_event,
    sampling_probability=st.sampled_from([0.003, 0.01, 0.05, 0.3, 1.0]),
    noise_multiplier=st.floats(min_value=0.5, max_value=30),
    steps=st.integers(min_value=1, max_value=400),
)
events = st.recursive(
    runs | st.builds(GaussianDpEvent, st.floats(min_value=0.5, max_value=50)),
    lambda inner: (
        st.builds(SelfComposedDpEvent, inner, st.integers(min_value=1, max_value=5))
        | st.builds(ComposedDpEvent, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=4,
)
budgets = st.builds(
    RenyiFilter, st.sampled_from([0.3, 1.0, 3.0, 8.0, 30.0]), st.sampled_from([1e-9, 1e-6, 1e-4])
)


def admitted(budget: RenyiFilter, offered: list[DpEvent]) -> tuple[list[DpEvent], RenyiCost]:
    """What a filter lets through of a sequence of events."""
    spent, kept = RenyiCost.nothing(), []
    for event in offered:
        cost = event_cost(event)
        if budget.admits(spent + cost):
            spent += cost
            kept.append(event)
    return kept, spent


@given(budgets, st.lists(events, min_size=1, max_size=12))
@settings(max_examples=60)
def test_what_is_admitted_is_within_the_budget(budget: RenyiFilter, offered: list[DpEvent]) -> None:
    kept, _ = admitted(budget, offered)
    together = ComposedDpEvent(kept)
    assert epsilon(together, budget.delta) <= budget.epsilon
    assert RdpAccountant().compose(together).get_epsilon(budget.delta) <= budget.epsilon


@given(budgets, st.lists(events, min_size=1, max_size=8), st.randoms())
@settings(max_examples=40)
def test_order_of_spending_does_not_matter(
    budget: RenyiFilter, spent: list[DpEvent], random: object
) -> None:
    costs = [event_cost(event) for event in spent]
    shuffled = list(costs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    total = sum(costs, RenyiCost.nothing())
    assert sum(shuffled, RenyiCost.nothing()) == total
    assert event_cost(ComposedDpEvent(spent[::-1])) == total
    for cost in shuffled:
        total -= cost
    assert total == RenyiCost.nothing()


@given(budgets, events, events)
@settings(max_examples=60)
def test_more_is_never_admitted_where_less_is_not(
    budget: RenyiFilter, one: DpEvent, other: DpEvent
) -> None:
    less, more = event_cost(one), event_cost(one) + event_cost(other)
    assert all(a <= b for a, b in zip(less.units, more.units, strict=True))
    assert budget.admits(less) or not budget.admits(more)
    assert budget.share(less) <= budget.share(more) * (1 + 1e-6)
    assert RenyiFilter(budget.epsilon * 1.1, budget.delta).admits(less) or not budget.admits(less)
    assert RenyiFilter(budget.epsilon, budget.delta * 2).admits(less) or not budget.admits(less)


@given(
    st.sampled_from([0.01, 0.2, 1.0]),
    st.floats(min_value=0.5, max_value=20),
    st.floats(min_value=1, max_value=2),
)
def test_more_noise_never_costs_more(q: float, noise: float, factor: float) -> None:
    less, more = (step_cost(SampledGaussian(q, s)) for s in (noise * factor, noise))
    assert all(a <= b * (1 + 1e-8) + 1 for a, b in zip(less.units, more.units, strict=True))


def pathwise_deficit(budget: RenyiFilter, cost: RenyiCost) -> float:
    """How far the bound of the proof, N, falls below (1 - e^(epsilon - L))+ at some loss L."""
    alphas = np.array(ORDERS)
    spent = np.array(cost.units, dtype=np.float64) / UNITS_PER_NAT
    excess = np.linspace(0, 40, 4001)[:, None]
    exponents = budget._log_weights_O + (alphas - 1) * (budget.epsilon - spent + excess)
    bound = budget.delta * np.exp(np.minimum(exponents, 100)).sum(axis=1)
    return float((-np.expm1(-excess[:, 0]) - bound).max())


@given(budgets, events)
@settings(max_examples=60)
def test_every_admitted_path_is_covered(budget: RenyiFilter, event: DpEvent) -> None:
    cost = event_cost(event)
    times = int(0.999 / max(budget.share(cost), 1e-9))
    assert budget.admits(cost * times)
    assert pathwise_deficit(budget, cost * times) <= 0


def test_room_at_some_order_would_not_be_enough() -> None:
    # The rule without weights admits this, and the bound that covers adaptive choices is exceeded.
    budget = RenyiFilter(3.0, 1e-6)
    event = GaussianDpEvent(1.65)
    assert RdpAccountant().compose(event).get_epsilon(1e-6) < 3.0
    assert not budget.admits(event_cost(event))
    assert pathwise_deficit(budget, event_cost(event)) > 0


def divergence(event: DpEvent, order: int) -> float:
    """Of a whole order, where dp_accounting's sum is exact: read off its epsilon at that order."""
    delta = 1e-40
    found = RdpAccountant([order]).compose(event).get_epsilon(delta)
    return found - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


@given(events)
@settings(max_examples=40)
def test_costs_are_between_those_of_dp_accounting_at_whole_orders(event: DpEvent) -> None:
    """A divergence D rises with its order a, and (a - 1) D is convex in it: so what it is at whole
    orders bounds it between them, from both sides. Nothing here depends on which order is best."""
    nats = dict(zip(ORDERS, (u / UNITS_PER_NAT for u in event_cost(event).units), strict=True))
    for order, cost in nats.items():
        if order > 60:
            break
        below, part = int(order), order % 1
        high = below * divergence(event, below + 1)
        low = (below - 1) * divergence(event, below) if below > 1 else 0.0
        slack = 1e-9 + 1e-7 * cost
        assert (order - 1) * cost <= (1 - part) * low + part * high + slack
        assert below == 1 or cost >= low / (below - 1) - slack


@pytest.mark.parametrize(
    ("epsilon_", "delta", "q", "steps", "most"),
    [
        (0.1, 1e-6, 0.05, 100, 1.17),
        (1.0, 1e-6, 0.01, 1000, 1.18),
        (1.0, 1e-6, 1.0, 1, 1.16),
        (3.0, 1e-6, 0.1, 60, 1.20),
        (8.0, 1e-6, 0.25, 200, 1.15),
        (8.0, 1e-6, 0.05, 100, 1.24),
        (50.0, 1e-5, 0.2, 100, 1.16),
    ],
)
def test_a_budget_is_not_much_more_than_one_run_needs(
    epsilon_: float, delta: float, q: float, steps: int, most: float
) -> None:
    noise = noise_multiplier(
        target_epsilon=epsilon_, delta=delta, sampling_probability=q, steps=steps
    )
    cost = event_cost(dpsgd_event(sampling_probability=q, noise_multiplier=noise, steps=steps))
    assert not RenyiFilter(epsilon_, delta).admits(cost)  # a filter pays for adaptivity
    assert RenyiFilter(epsilon_ * most, delta).admits(cost)


def test_share_counts_equal_jobs() -> None:
    budget = RenyiFilter(8.0, 1e-6)
    cost = event_cost(dpsgd_event(sampling_probability=0.05, noise_multiplier=2.0, steps=50))
    one = budget.share(cost)
    assert budget.share(RenyiCost.nothing()) == 0
    assert budget.share(cost * 3) == pytest.approx(3 * one, rel=1e-6)
    fits = math.floor(1 / one)
    assert budget.admits(cost * fits)
    assert not budget.admits(cost * (fits + 1))
    assert budget.share(cost * (fits + 1)) > 1


def test_sub_cap_is_a_filter_with_the_same_costs() -> None:
    joint, sub = RenyiFilter(8.0, 1e-6), RenyiFilter(1.0, 1e-6)
    cost = event_cost(dpsgd_event(sampling_probability=0.05, noise_multiplier=1.5, steps=100))
    assert joint.admits(cost)
    assert not sub.admits(cost)


def test_nothing_costs_nothing_and_no_noise_has_no_price() -> None:
    assert event_cost(dp_event.NoOpDpEvent()) == RenyiCost.nothing()
    with pytest.raises(GuaranteeError, match="without noise"):
        event_cost(ComposedDpEvent([GaussianDpEvent(1.0), dp_event.NonPrivateDpEvent()]))
    with pytest.raises(GuaranteeError, match="LaplaceDpEvent"):
        event_cost(dp_event.LaplaceDpEvent(1.0))


def test_nobody_gets_back_more_than_was_spent() -> None:
    cost = event_cost(GaussianDpEvent(3.0))
    with pytest.raises(GuaranteeError, match="freed"):
        cost - cost * 2
    with pytest.raises(GuaranteeError):
        RenyiCost((1, 2))


def test_almost_no_noise_is_never_admitted() -> None:
    assert not RenyiFilter(1000.0, 0.5).admits(event_cost(GaussianDpEvent(1e-5)))
    assert RenyiFilter(1000.0, 0.5).share(event_cost(GaussianDpEvent(1e-5))) > 1


@pytest.mark.parametrize(
    ("epsilon_", "delta"), [(0.0, 1e-6), (math.nan, 1e-6), (1001.0, 1e-6), (1.0, 0.0), (1.0, 0.6)]
)
def test_budgets_outside_their_bound(epsilon_: float, delta: float) -> None:
    with pytest.raises(PrivacyParameterError):
        RenyiFilter(epsilon_, delta)


@pytest.mark.parametrize("epsilon_", [0.01, 0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-15, 1e-6, 0.5])
def test_every_budget_has_room_for_something(epsilon_: float, delta: float) -> None:
    assert RenyiFilter(epsilon_, delta).admits(event_cost(GaussianDpEvent(1e5)))


@settings(max_examples=50)
@given(q=st.floats(1e-4, 1.0), sigma=st.floats(0.4, 50.0))
def test_costs_are_rounded_up_and_never_down(q: float, sigma: float) -> None:
    """A millionth of a millionth too little, a million times, is a budget overspent."""
    step = SampledGaussian(q, sigma)
    for units, alpha in zip(step_cost(step).units, ORDERS, strict=True):
        exact = renyi.divergence(step, alpha)
        if exact < 1e5:
            assert Fraction(units, UNITS_PER_NAT) >= Fraction(exact)
