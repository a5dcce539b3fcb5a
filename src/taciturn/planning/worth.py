"""Expected worth of a private fit before anything is spent, from measured runs.

A fit's worth is the share it keeps of what the best ordinary fit of the same model learns: of the
gain in nats per token on held-out text. It follows mostly from the noise that is left on the mean
of all steps' gradients, and from the size of the model:

    log(share / (1 - share)) = level + noise * log(1 / remaining noise) + size * log(parameters)

with `noise` and `size` at least 0, so that less noise and a larger model are never worth less. The
coefficients are fitted to MEASURED by least squares (`python bench/worth.py`, which prints them and
their error); a test compares them, so whoever adds a row runs it and puts its numbers here.

All of it is public: nothing here depends on a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from taciturn.spec import Method

Kind = Literal["measured", "simulated"]

WORTHLESS = 0.15
"""Share below which a private fit isn't worth its budget."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One plan that was run, and the share of the ordinary gain that it kept.

    Attributes:
        source: the script in bench/ (or the command) that prints it, and where the figure stands.
        kind: `measured`, a complete private run; `simulated`, few units a step under the noise of
            many (bench/tuning.py): no private run, and never told as one.
        parameters: of the base model.
        batch_size: expected units per step.
        share: of the best ordinary fit's gain in nats per token on held-out text; a mean over
            `fits` runs.
    """

    source: str
    kind: Kind
    model: str
    parameters: int
    data: str
    method: Method
    epsilon: float
    delta: float
    n_units: int
    batch_size: int
    steps: int
    noise_multiplier: float
    share: float
    fits: int = 1

    @property
    def remaining_noise(self) -> float:
        """Noise on the mean of all steps' gradients, in clip norms."""
        return self.noise_multiplier / (self.batch_size * math.sqrt(self.steps))


_TINY = ("taciturn/tiny-medical", 4_737_280)

# The order of the fields: source, kind, model and its parameters, data, method; epsilon, delta,
# n_units, batch_size, steps, noise_multiplier, share, fits.
_Origin = tuple[str, Kind, str, int, str, Method]
_PHEE: _Origin = ("bench/phee.py", "measured", *_TINY, "PHEE, test split", "auto")
_DEMO: _Origin = ("taciturn demo", "measured", *_TINY, "invented notes, held out", "auto")

MEASURED: tuple[MeasuredRun, ...] = (
    MeasuredRun(*_PHEE, 8, 1e-5, 1109, 1109, 20, 2.6853, 0.421),
    MeasuredRun(*_PHEE, 3, 1e-5, 1109, 1109, 20, 6.2215, 0.318),
    MeasuredRun(*_PHEE, 1, 1e-5, 1109, 1109, 20, 16.691, 0.142),
    # Of the gain of its own ordinary fit, a third of an epoch.
    MeasuredRun(*_DEMO, 3, 1e-6, 20_000, 512, 48, 0.8242, 0.69),
)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Coefficients that bench/worth.py found.

    Attributes:
        level, noise, size: the coefficients; parameters are counted in millions.
        error: root mean square of log(share / (1 - share)) where each plan in turn is left out.
        share_error: the same of the share.
    """

    level: float
    noise: float
    size: float
    error: float
    share_error: float

    def log_odds(self, remaining_noise: float, parameters: int) -> float:
        """log(share / (1 - share)); a model larger than any of the table counts as its largest."""
        largest = max(row.parameters for row in MEASURED)
        size = math.log(min(parameters, largest) / 1e6)
        return self.level - self.noise * math.log(remaining_noise) + self.size * size

    def noise_of(self, share: float, parameters: int) -> float:
        """The remaining noise at which `share` is expected."""
        missing = self.log_odds(1.0, parameters) - math.log(share / (1 - share))
        return math.exp(missing / self.noise)


FITTED = Fitted(level=-7.0947, noise=0.9305, size=0.0, error=0.2476, share_error=0.0579)


class Worth(BaseModel):
    """The expected share of what an ordinary fit would learn.

    Attributes:
        low, high: between these; None where nothing like it was measured.
        least_units: with fewer units than about this, at this epsilon, a fit isn't worth it.
        more_units, more_share: what about three times as many units would be worth.
        text: all that in words.
        basis: what it is fitted to, and its error.
    """

    model_config = ConfigDict(frozen=True)

    low: float | None = None
    high: float | None = None
    least_units: int | None = None
    more_units: int | None = None
    more_share: float | None = None
    text: str
    basis: str


def expected_worth(
    *,
    remaining_noise: float,
    n_units: int,
    epsilon: float,
    delta: float,
    parameters: int,
    method: str,
) -> Worth:
    """Expected share that a private fit keeps of what an ordinary fit would learn.

    Args:
        remaining_noise: standard deviation of the noise on the mean of all steps' gradients, in
            clip norms: noise multiplier / (batch x sqrt(steps)).
        n_units: privacy units; more of them, with batches that grow alike, have less noise.
        epsilon, delta: of the plan; what it takes at least follows from the least noise there is
            for them, which is that of every unit in every step.
        parameters: of the base model.
        method: that was asked for: auto, lora or full.
    """
    rows = [row for row in MEASURED if row.method == method]
    if not rows:
        methods = " or ".join(sorted({row.method for row in MEASURED}))
        return Worth(
            text=f"what it would be worth is not known: no run with method={method!r} was "
            f"measured, only with {methods}",
            basis=basis(),
        )
    beyond = _beyond(rows, remaining_noise, parameters)
    error = FITTED.error * (2 if beyond else 1)
    odds = FITTED.log_odds(remaining_noise, parameters)
    low, share, high = (_share(odds + shift) for shift in (-error, 0.0, error))
    least_noise = 1 / (n_units * _gaussian_mu(epsilon, delta))
    least = _rounded(n_units * least_noise / FITTED.noise_of(WORTHLESS, parameters))
    more = _rounded(3 * n_units)
    more_share = _share(FITTED.log_odds(remaining_noise * n_units / more, parameters))
    text = _in_words(n_units, low, share, high)
    if share >= WORTHLESS:
        if more_share < 0.95:
            times = f"{more / n_units:.2g} times the time"
            text += f"; with {more:,} units, in {times}, about {_percent(more_share)}%"
        text += f"; with fewer than about {least:,} units: don't" if least > 1 else ""
    elif n_units < least:
        text += f"; it takes about {least:,} units at this epsilon"
    elif remaining_noise > 1.1 * least_noise:
        text += "; give it more time"
    else:
        text += "; it takes more units, or a larger epsilon"
    return Worth(
        low=round(low, 4),
        high=round(high, 4),
        least_units=least,
        more_units=more,
        more_share=round(more_share, 4),
        text=text + beyond,
        basis=basis(),
    )


def _in_words(n_units: int, low: float, share: float, high: float) -> str:
    ordinary = "of what an ordinary fit would learn"
    if share < WORTHLESS:
        return f"don't: with {n_units:,} units expect less than {WORTHLESS:.0%} {ordinary}"
    if low >= 0.9:
        return f"expect about 90% or more {ordinary}"
    return f"expect about {_percent(low)}% to {_percent(high)}% {ordinary}"


def expected_share(remaining_noise: float, parameters: int) -> float:
    """The middle of what is expected, for comparing plans of one fit."""
    return _share(FITTED.log_odds(remaining_noise, parameters))


def basis() -> str:
    """Measurements that the expectation is fitted to, and its error."""
    measured = [row for row in MEASURED if row.kind == "measured"]
    simulated = [row for row in MEASURED if row.kind == "simulated"]
    text = f"fitted to {len(measured)} measured plans of {_names(measured)}"
    if simulated:
        text += f" and {len(simulated)} simulated ones of {_names(simulated)}"
    return (
        f"{text}; left out in turn, they are missed by {100 * FITTED.share_error:.0f} percentage "
        "points (bench/worth.py)"
    )


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """Signal over noise of the Gaussian mechanism that is (epsilon, delta)-DP: sqrt(steps) / sigma.

    Balle and Wang 2018, theorem 5. For saying what to expect; no promise rests on it.
    """
    low, high = 1e-6, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        left, right = -epsilon / middle + middle / 2, -epsilon / middle - middle / 2
        delta_at_middle = math.exp(_log_normal(left)) - math.exp(
            min(0.0, epsilon + _log_normal(right))
        )
        low, high = (middle, high) if delta_at_middle <= delta else (low, middle)
    return low


def _log_normal(x: float) -> float:
    """log of the standard normal distribution function, also far out in its lower tail."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi))


def _beyond(rows: list[MeasuredRun], remaining_noise: float, parameters: int) -> str:
    """Words for a plan that is far from all measured rows; empty for others."""
    noises = [row.remaining_noise for row in rows]
    if not min(noises) / 2 <= remaining_noise <= 2 * max(noises):
        return " (a guess: no run with so little or so much noise was measured)"
    near = {row.kind for row in rows if row.parameters / 4 <= parameters <= 4 * row.parameters}
    if "measured" in near:
        return ""
    how = "runs of models of this size were simulated only" if near else "none of its size was run"
    return f" (a guess: {how})"


def _names(rows: list[MeasuredRun]) -> str:
    return ", ".join(dict.fromkeys(row.model for row in rows))


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, log_odds))))


def _percent(share: float) -> int:
    """Round to the nearest five, and neither to none nor to all."""
    return min(95, max(5, 5 * round(20 * share)))


def _rounded(units: float) -> int:
    """Round to one significant digit; at least 1."""
    if units < 1:
        return 1
    scale = 10 ** math.floor(math.log10(units))
    return int(round(units / scale) * scale)
