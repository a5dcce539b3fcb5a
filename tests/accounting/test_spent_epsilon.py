"""Epsilon that a cost comes to, as people read it beside a budget."""

from __future__ import annotations

import pytest

from taciturn.accounting.filter import RenyiCost, RenyiFilter, step_cost
from taciturn.accounting.privacy_loss import SampledGaussian


def test_it_reaches_the_budget_where_its_share_does() -> None:
    budget, step = RenyiFilter(8.0, 1e-6), step_cost(SampledGaussian(0.02, 1.0))
    assert budget.spent_epsilon(RenyiCost.nothing()) == 0.0
    before = 0.0
    for count in (1, 10, 100, 1000, 5000):
        cost = step * count
        spent = budget.spent_epsilon(cost)
        assert spent > before
        assert (spent < budget.epsilon) == (budget.share(cost) < 1)
        before = spent
    full = step * int(1 / budget.share(step))
    assert budget.spent_epsilon(full) == pytest.approx(budget.epsilon, rel=1e-2)
