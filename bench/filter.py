"""What a privacy filter costs: the budget that one run needs, beside its epsilon.

    python bench/filter.py

Each row is a run whose noise is calibrated to a target epsilon by privacy loss distributions.
Beside it: the best Rényi bound on the same run, which holds if the run was fixed in advance, and
the smallest budget whose filter admits it, which holds for runs that are chosen adaptively; both
over the target.
"""

from __future__ import annotations

import argparse

from dp_accounting.rdp import compute_epsilon

from accounting_grid import GRID, Setting
from evidence.figures import Table, add_out, keep
from taciturn.accounting.calibrate import MAX_EPSILON
from taciturn.accounting.filter import ORDERS, UNITS_PER_NAT, RenyiCost, RenyiFilter, event_cost
from taciturn.errors import PrivacyParameterError


def smallest_budget(cost: RenyiCost, delta: float, low: float) -> float:
    """The smallest epsilon above `low` whose filter admits `cost`, to 1e-3; else infinite."""
    high = MAX_EPSILON
    if not _admits(high, delta, cost):
        return float("inf")
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _admits(middle, delta, cost) else (middle, high)
    return high


def _admits(epsilon: float, delta: float, cost: RenyiCost) -> bool:
    try:
        return RenyiFilter(epsilon, delta).admits(cost)
    except PrivacyParameterError:
        return False


def ratios(setting: Setting) -> tuple[float, float]:
    """The best Rényi bound of a run, and the smallest budget that admits it, over its epsilon."""
    cost = event_cost(setting.event(setting.calibrated()))
    nats = [unit / UNITS_PER_NAT for unit in cost.units]
    renyi, _ = compute_epsilon(ORDERS, nats, setting.delta)
    budget = smallest_budget(cost, setting.delta, setting.target_epsilon)
    return renyi / setting.target_epsilon, budget / setting.target_epsilon


def main() -> None:
    """Print the grid as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_out(parser)
    out = parser.parse_args().out
    table, budgets = Table("ε", "δ", "q", "steps", "Rényi / ε", "budget / ε"), []
    for setting in GRID:
        if setting.target_epsilon < 200:  # a budget above 1000 is none
            renyi, budget = ratios(setting)
            about = (setting.target_epsilon, setting.delta, setting.sampling_probability)
            cells = [*(f"{value:g}" for value in about), str(setting.steps)]
            table.add(*cells, f"{renyi:.3f}", f"{budget:.3f}")
            budgets.append(budget - 1)
    least, *_, second, most = sorted(budgets)
    keep(out, {"budgets": table.rows, "least": least, "second": second, "most": most})


if __name__ == "__main__":
    main()
