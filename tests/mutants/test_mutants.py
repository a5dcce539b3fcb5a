"""The real step passes every check; every mutant fails the one that is there for it."""

from __future__ import annotations

import pytest

from mutants.checks import CHECKS
from mutants.mutants import MUTANTS
from mutants.variants import REAL

pytestmark = [pytest.mark.statistical, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("check", CHECKS)
def test_real_step_passes(check: str) -> None:
    CHECKS[check](REAL)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name: str) -> None:
    mutant, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        CHECKS[check](mutant)


def test_every_check_kills_something() -> None:
    assert {check for _, check in MUTANTS.values()} == set(CHECKS)
