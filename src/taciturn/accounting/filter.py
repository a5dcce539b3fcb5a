"""A privacy filter: does one more event, chosen after seeing what came before, still fit?

Adding epsilons up, or pricing everything together afterwards, promises nothing when each job was
chosen because of what the last ones said. A filter does (Rogers et al. 2016): as long as it
admitted every event before the event ran, everything together is (epsilon, delta)-DP.

**The guarantee.** Fix weights w over the orders ahead of time, sum w = 1. Let s(alpha) be the sum
of the Rényi divergences of all admitted events, and L the privacy loss of all they released. For
each alpha, E[exp((alpha - 1)(L - s(alpha)))] <= 1, however events and stopping were chosen: each
event multiplies by a conditional mean of at most 1 (Feldman & Zrnic 2021, section 3; Lécuyer 2021,
section 3). With c(alpha) = (1/alpha)(1 - 1/alpha)^(alpha - 1), 1 - e^-x is at most
c(alpha) e^((alpha - 1) x) for every x (Canonne, Kamath & Steinke 2020, proposition 12). An event is
admitted while

    sum over alpha of  w(alpha) / delta(alpha)  >=  1 / delta,
    delta(alpha) = c(alpha) exp((alpha - 1)(s(alpha) - epsilon)),

so on every path (1 - e^(epsilon - L))+ is at most N = delta * sum of w(alpha) exp((alpha - 1)(L -
s(alpha))), and the delta of everything at epsilon, E[(1 - e^(epsilon - L))+] <= E[N] <= delta.

**Why not "some order still has room".** Which order that is would depend on what was released,
and then no single one of the inequalities above covers all paths: filters over whole curves are
not free. The weights pay for the choice. Because they lie where the best order of a budget is
expected, that is mostly 5% to 8% of epsilon, beside what Rényi bounds cost (`bench/filter.py`).

**Exact arithmetic.** Costs are whole numbers of 1e-12 nats, rounded up once per step. Sums do not
depend on the order of spending, and what is given back leaves no residue, as with money.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from dp_accounting.dp_event import DpEvent
from scipy import optimize, special

from taciturn._version import __version__
from taciturn.accounting.calibrate import MAX_EPSILON, MIN_EPSILON
from taciturn.accounting.compose import check_delta_range, counted_steps
from taciturn.accounting.gaussian import Floats
from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.accounting.renyi import divergence
from taciturn.errors import GuaranteeError, PrivacyParameterError

FILTER = "renyi-mixture-1"
"""Name and version of orders, weights and rounding: costs of different ones do not add up."""

PRICED_BY = (
    f"taciturn {__version__}: {FILTER}, "
    f"events of dp_accounting {importlib.metadata.version('dp-accounting')}"
)
"""Name and version of what put a price on an event."""

UNITS_PER_NAT = 10**12

_ORDERS_O: Floats = np.array([round(1 + 0.1 * 1.3**k, 4) for k in range(45)])
ORDERS = tuple(_ORDERS_O.tolist())
"""The orders alpha at which costs are kept: 1.1 to 10,300."""

_LOG_CONVERSION_O: Floats = (_ORDERS_O - 1) * np.log1p(-1 / _ORDERS_O) - np.log(_ORDERS_O)
# Where the best order of a run that uses a whole budget lies: for DP-SGD at 0.5 to 0.9 of the
# alpha - 1 of a step without sampling, which is known in closed form.
_CENTRE, _WIDTH = 0.55, 0.45
_MOST = 10**6 * UNITS_PER_NAT  # what one step costs at most; no budget is near it
_MARGIN = 1e-9  # floating-point rounding of the sum over orders


@dataclass(frozen=True, slots=True)
class RenyiCost:
    """Rényi divergences at `ORDERS` in whole units of 1e-12 nats, never less than the true ones."""

    units: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = all(type(unit) is int and unit >= 0 for unit in self.units)
        if len(self.units) != len(ORDERS) or not whole:
            raise GuaranteeError(
                f"a cost is {len(ORDERS)} whole numbers, at least 0; was more freed than was spent?"
            )

    @classmethod
    def nothing(cls) -> RenyiCost:
        """The cost of no event."""
        return cls((0,) * len(ORDERS))

    def __add__(self, other: RenyiCost) -> RenyiCost:
        return RenyiCost(tuple(a + b for a, b in zip(self.units, other.units, strict=True)))

    def __sub__(self, other: RenyiCost) -> RenyiCost:
        """Raises GuaranteeError if more would be given back than there is."""
        return RenyiCost(tuple(a - b for a, b in zip(self.units, other.units, strict=True)))

    def __mul__(self, count: int) -> RenyiCost:
        return RenyiCost(tuple(unit * count for unit in self.units))


@lru_cache(maxsize=4096)
def step_cost(step: SampledGaussian) -> RenyiCost:
    """The cost of one step, rounded up."""
    return RenyiCost(tuple(_rounded_up(divergence(step, alpha)) for alpha in ORDERS))


def event_cost(event: DpEvent) -> RenyiCost:
    """The cost of an event: the sum over its steps.

    Raises:
        GuaranteeError: the event is not private, or of a kind that cannot be accounted for.
        PrivacyParameterError: a value outside its bound.
    """
    steps = counted_steps(event)
    if steps is None:
        raise GuaranteeError("an event without noise costs more than any budget; it has no price")
    total = RenyiCost.nothing()
    for step, count in steps.items():
        total += step_cost(step) * count
    return total


@dataclass(frozen=True)
class RenyiFilter:
    """A budget (epsilon, delta) that admits or refuses; the guarantee is the module's.

    Sub-caps are filters of their own, with the same costs.

    Attributes:
        epsilon: in [0.01, 1000].
        delta: in [1e-15, 0.5].

    Raises:
        PrivacyParameterError: outside of that, or so small that nothing could ever be admitted.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not MIN_EPSILON <= self.epsilon <= MAX_EPSILON:
            raise PrivacyParameterError(
                f"a budget's epsilon={self.epsilon:g} must lie in [{MIN_EPSILON:g}, "
                f"{MAX_EPSILON:g}]; choose for example 8"
            )
        check_delta_range(self.delta)
        if not self.admits(RenyiCost.nothing()):
            raise PrivacyParameterError(
                f"epsilon={self.epsilon:g} with delta={self.delta:g} leaves room for nothing; "
                "raise one of them"
            )

    def admits(self, cost: RenyiCost) -> bool:
        """True if `cost`, all that was admitted so far and what is asked for, is within budget."""
        return self._room(cost, 1.0) >= _MARGIN

    def share(self, cost: RenyiCost) -> float:
        """Share of the budget that `cost` is: 1 / t where t times as much would just fit.

        For people to read: k equal jobs take k times the share of one. Above 1 is not admitted.
        """
        if not any(cost.units):
            return 0.0
        low, high = -60.0, 60.0
        if self._room(cost, math.exp(high)) >= 0:
            return math.exp(-high)
        if self._room(cost, math.exp(low)) <= 0:
            return math.exp(-low)
        times = optimize.brentq(lambda log: self._room(cost, math.exp(log)), low, high, xtol=1e-9)
        return math.exp(-times)

    def spent_epsilon(self, cost: RenyiCost) -> float:
        """Epsilon that `cost` comes to at the budget's delta: the smallest one at which a budget
        with this one's weights would have admitted it. For people to read: below the budget's
        epsilon while there is room, and equal to it when nothing is left."""
        if not any(cost.units) or self._room(cost, 1.0, 0.0) >= 0:
            return 0.0
        most = 2 * self.epsilon
        while self._room(cost, 1.0, most) < 0:
            most *= 2
        return float(optimize.brentq(lambda at: self._room(cost, 1.0, at), 0.0, most, xtol=1e-9))

    def _room(self, cost: RenyiCost, times: float, epsilon: float | None = None) -> float:
        """Logarithm of (sum of w / delta(alpha)) * delta; at least 0 is admitted."""
        spent_O = np.array(cost.units, dtype=np.float64) * (times / UNITS_PER_NAT)
        at = self.epsilon if epsilon is None else epsilon
        exponents_O = (_ORDERS_O - 1) * (at - spent_O) - _LOG_CONVERSION_O
        exponents_O += self._log_weights_O
        # With every plan and every look at a budget: scipy's logsumexp takes ten times as long.
        largest = float(exponents_O.max())
        total = float(np.exp(exponents_O - largest).sum())
        return largest + math.log(total) + math.log(self.delta)

    @cached_property
    def _log_weights_O(self) -> Floats:
        """A bell over log(alpha - 1), fixed by epsilon and delta before anything is spent.

        A step of noise s without sampling costs alpha / (2 s^2); the order that fits the most of
        them into epsilon has alpha - 1 = (l / epsilon)(1 + sqrt(1 + epsilon / l)) with
        l = log(1 / delta).
        """
        log_inverse = -math.log(self.delta)
        best = log_inverse / self.epsilon * (1 + math.sqrt(1 + self.epsilon / log_inverse))
        bell_O = -0.5 * (np.log((_ORDERS_O - 1) / (_CENTRE * best)) / _WIDTH) ** 2
        log_weights_O: Floats = bell_O - special.logsumexp(bell_O)
        return log_weights_O


def _rounded_up(nats: float) -> int:
    # As a fraction: the product of floats may be rounded down.
    return min(math.ceil(Fraction(nats) * UNITS_PER_NAT), _MOST) if nats < math.inf else _MOST
