"""The auditor audits us: attackers who read no source convict every broken engine, never ours.

Nothing here has a fixed seed: every run of the tests is another audit. An honest engine is
convicted in one of these worlds with probability at most CHANCE, so by all tests here in less than
one of a million runs of the suite; the mutants are convicted with room to spare.
"""

from __future__ import annotations

import pytest

from auditing.engines import CAUGHT_IN, NOT_CAUGHT, engine
from auditing.verdicts import CHANCE, Count, best, judge
from auditing.worlds import WORLDS, World
from mutants.mutants import MUTANTS
from mutants.variants import REAL

pytestmark = [pytest.mark.statistical, pytest.mark.filterwarnings("ignore")]

FAST = [name for name, world in WORLDS.items() if not world.slow]
SLOW = [name for name, world in WORLDS.items() if world.slow]
NAMED = (
    "half of sigma",
    "no clip",
    "units in the order of the data",
    "double draw",
    "mean over the batch's tokens",
    "noise of seed 42",
    "divided by what was drawn",
    "records clipped, not units",
    "clip per microbatch",
    "noise on one microbatch only",
    "tied norm overwritten by its last use",
    "empty draw skipped",
    "noise started again at each step",
)
"""What other libraries got wrong (docs/pitfalls.md): no audit may leave these to the long tests."""


def test_every_mutant_is_caught_or_explained() -> None:
    assert CAUGHT_IN.keys() | NOT_CAUGHT.keys() == MUTANTS.keys()
    assert not CAUGHT_IN.keys() & NOT_CAUGHT.keys()
    assert set(CAUGHT_IN.values()) == WORLDS.keys()


def test_what_others_got_wrong_is_caught_by_the_fast_tests() -> None:
    assert {CAUGHT_IN[name] for name in NAMED} <= set(FAST)


def test_chance_of_convicting_an_honest_engine_is_below_one_in_a_million() -> None:
    assert len(WORLDS) * CHANCE < 1e-6


def honest(world: World, longer: int = 1) -> None:
    counts = judge(REAL, world, longer)
    assert not any(count.convicts for count in counts), text(best(counts))


def guilty(name: str) -> None:
    count = best(judge(engine(name), WORLDS[CAUGHT_IN[name]]))
    assert count.convicts, text(count)


def text(count: Count) -> str:
    return f"{count.attacker}: {count.correct} of {count.runs} right, p={count.p_value:.1e}"


@pytest.mark.parametrize("world", FAST)
def test_the_real_engine_keeps_its_promise(world: str) -> None:
    honest(WORLDS[world])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", WORLDS)
def test_the_real_engine_keeps_its_promise_for_longer(world: str) -> None:
    honest(WORLDS[world], longer=1 if WORLDS[world].slow else 8)


@pytest.mark.parametrize("name", [name for name, world in CAUGHT_IN.items() if world in FAST])
def test_mutant_is_caught(name: str) -> None:
    guilty(name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, world in CAUGHT_IN.items() if world in SLOW])
def test_mutant_of_several_ranks_is_caught(name: str) -> None:
    guilty(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NOT_CAUGHT)
def test_others_are_no_easy_prey(name: str) -> None:
    """If one of these is caught after all, it belongs to the others."""
    worlds = [world for world in WORLDS.values() if not world.slow and world.ranks == 1]
    if "rank" in name:
        worlds = [WORLDS["two ranks"]]
    assert not any(count.convicts for world in worlds for count in judge(engine(name), world))
