"""What a private fit is worth, by the noise that it leaves and the size of its model.

Fits the curve of `taciturn.planning.worth` to its table of measured and simulated runs (MEASURED),
by least squares over log(share / (1 - share)), and prints the coefficients to put there, what they
expect of each run, and by how much they miss it when it is left out.

    python bench/worth.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from taciturn.planning.worth import FITTED, MEASURED, Fitted, MeasuredRun


def coefficients(rows: Sequence[MeasuredRun]) -> tuple[float, float, float]:
    """level, noise and size, by least squares; of one size alone, size is 0."""
    terms = np.array([_terms(row) for row in rows])
    if len({row.parameters for row in rows}) == 1:
        terms[:, 2] = 0
    level, noise, size = np.linalg.lstsq(terms, [_odds(row.share) for row in rows])[0]
    return float(level), float(noise), float(size)


def fit(rows: Sequence[MeasuredRun]) -> Fitted:
    """The curve through all rows, and its error where each of them is left out in turn."""
    found = coefficients(rows)
    if min(found[1:]) < 0:
        raise SystemExit(
            f"noise and size must be at least 0, and are {found[1:]}; look at the rows"
        )
    left_out = [
        expected(coefficients([*rows[:i], *rows[i + 1 :]]), row) for i, row in enumerate(rows)
    ]
    odds = [_odds(share) - _odds(row.share) for share, row in zip(left_out, rows, strict=True)]
    shares = [share - row.share for share, row in zip(left_out, rows, strict=True)]
    return Fitted(*(round(each, 4) for each in (*found, _rms(odds), _rms(shares))))


def expected(found: tuple[float, float, float], row: MeasuredRun) -> float:
    """The share that these coefficients expect of a run."""
    return float(1 / (1 + np.exp(-np.dot(found, _terms(row)))))


def _terms(row: MeasuredRun) -> tuple[float, float, float]:
    return 1.0, -math.log(row.remaining_noise), math.log(row.parameters / 1e6)


def _odds(share: float) -> float:
    return math.log(share / (1 - share))


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def main() -> None:
    """Print the fit, and every run beside what is expected of it."""
    found = fit(MEASURED)
    print(f"FITTED = {found}")
    print("as it is in taciturn.planning.worth\n" if found == FITTED else "NOT as it is there\n")
    print("| run | kind | model | epsilon | n | remaining noise | kept | expected | left out |")
    print("|---|---|---|---|---|---|---|---|---|")
    for i, row in enumerate(MEASURED):
        own = expected(coefficients(MEASURED), row)
        without = expected(coefficients([*MEASURED[:i], *MEASURED[i + 1 :]]), row)
        print(
            f"| {row.source}, {row.data} | {row.kind} | {row.model} | {row.epsilon:g} | "
            f"{row.n_units} | {row.remaining_noise:.3g} | {row.share:.0%} | {own:.0%} | "
            f"{without:.0%} |"
        )


if __name__ == "__main__":
    main()
