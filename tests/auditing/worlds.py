"""Pairs of neighbouring data sets, each designed so that one kind of mistake shows.

The attacker chooses everything but the coins and the engine's randomness: all other units, the
canary, the model, the settings. In a world the canary is there or not, by a fair coin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from auditing.books import Book, TiedBook, Token, Unit
from mutants.variants import VOCABULARY, LossOf, TinyLm
from taciturn.engine.auditing.claim import DpSgdRun
from taciturn.engine.privacy.forms import Form
from taciturn.engine.training.batch import BatchLimits

CLIP = 1.0
LOUD = 100.0 * CLIP
TOGETHER = BatchLimits(tokens=1 << 14, units=12, max_tokens=128)
CROWDED = BatchLimits(tokens=1 << 14, units=64, max_tokens=128)
APART = BatchLimits(tokens=1 << 14, units=1, max_tokens=128)


@dataclass(frozen=True)
class World:
    """Two neighbours and the settings of a run.

    Attributes:
        why: what shows here.
        canary, others: units; the canary is the last of the data, or the first.
        model: made from a variant's way to sum up a loss.
        noise_multiplier, slots, batch_size, steps: of the mechanism; units beyond the data's are
            never there, so that each unit joins with batch_size / slots in both neighbours.
        runs: how often the game is played.
        slow: whether that takes so long that it is left to the long tests.
    """

    name: str
    why: str
    canary: Unit
    others: tuple[Unit, ...]
    model: Callable[[LossOf], nn.Module]
    noise_multiplier: float = 2 / 3
    slots: int = 3
    batch_size: int = 3
    steps: int = 1
    clip: float = CLIP
    limits: BatchLimits = TOGETHER
    form: Form = Form.AUTO
    ranks: int = 1
    canary_first: bool = False
    runs: int = 180
    slow: bool = False

    @property
    def run(self) -> DpSgdRun:
        """Return the event that the engine accounts for."""
        return DpSgdRun(self.batch_size / self.slots, self.noise_multiplier, self.steps)

    @property
    def unit_of_release(self) -> float:
        """A clipped unit's norm in a released gradient."""
        return self.clip / self.batch_size

    def units(self, member: bool) -> tuple[Unit, ...]:
        """The data with the canary or without."""
        canary = (self.canary,) if member else ()
        return (*canary, *self.others) if self.canary_first else (*self.others, *canary)


def _book(
    tokens: Sequence[Token], names: Sequence[str] = ("one",)
) -> Callable[[LossOf], nn.Module]:
    return lambda loss_of: Book(tokens, names)


def _unit(token: int, records: int = 1, length: int = 2) -> Unit:
    return ((token,) * length,) * records


_FOUR = ("a", "b", "c", "d")
_EACH_ITS_ROW = [Token(row, (LOUD,)) for row in range(3)]
_LOUD_IN_ALL = [Token(row, (LOUD,) * 4) for row in range(3)]
_OPPOSITE = [Token(0, (LOUD,)), Token(1, (0.0,)), Token(0, (-100 * LOUD,))]
_FAR_APART = [Token(80 * unit, (LOUD,)) for unit in range(3)]
_IN_LORA_B = [Token(row, (1e-3 * LOUD, LOUD)) for row in range(3)]
_ENDLESS = [Token(0, (LOUD,)), Token(1, (LOUD,)), Token(2, (math.inf,))]


def _text(length: int, seed: int) -> Unit:
    return (tuple(np.random.default_rng(seed).integers(VOCABULARY, size=length).tolist()),)


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World(
            "alone",
            "a loud canary on rows of its own, in four parameters",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_LOUD_IN_ALL, _FOUR),
            noise_multiplier=0.5,
            runs=480,
        ),
        World(
            "opposite",
            "a companion in the same microbatch that the canary shouts down",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_OPPOSITE),
            noise_multiplier=0.5,
            runs=480,
        ),
        World(
            "two matrices",
            "a canary that is loud in LoRA's B only",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_IN_LORA_B, ("lora_A", "lora_B")),
        ),
        World(
            "not finite",
            "a canary whose gradient is not a number",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_ENDLESS),
        ),
        World(
            "records",
            "a canary of twelve records",
            canary=_unit(2, records=12),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
        ),
        World(
            "parts",
            "a canary of more records than one microbatch holds",
            canary=_unit(2, records=12, length=16),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
            limits=BatchLimits(tokens=32, units=3, max_tokens=128),
        ),
        World(
            "microbatches",
            "a canary in a microbatch of its own, after another one",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
            limits=APART,
        ),
        World(
            "crowd",
            "a long canary among many short units",
            canary=_text(16, seed=1),  # no longer: then it would have a microbatch of its own
            others=(_text(3, seed=2),) * 60,
            model=TinyLm,
            slots=61,
            batch_size=61,
            clip=4.0,
            limits=CROWDED,
        ),
        World(
            "few",
            "one other unit, so that the canary doubles the batch",
            canary=_unit(2),
            others=(_unit(0),),
            model=_book([Token(0, (0.0,)), Token(1, (0.0,)), Token(2, (1e-3,))]),
            slots=2,
            batch_size=2,
        ),
        World(
            "nobody",
            "no other unit, so that without the canary nobody is drawn",
            canary=_unit(2),
            others=(),
            model=_book([Token(row, (1e-3,)) for row in range(3)]),
            slots=1,
            batch_size=1,
        ),
        World(
            "seldom",
            "draws that are mostly empty",
            canary=_unit(2),
            others=(_unit(0),),
            model=_book([Token(0, (0.0,)), Token(1, (0.0,)), Token(2, (LOUD,))]),
            noise_multiplier=0.3,
            slots=8,
            batch_size=1,
            canary_first=True,
            runs=800,
        ),
        World(
            "sampled",
            "a canary that joins two steps of three",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
            noise_multiplier=0.25,
            batch_size=2,
            runs=400,
        ),
        World(
            "every other step",
            "a canary that joins about half of four steps",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
            noise_multiplier=2.0,
            slots=4,
            batch_size=2,
            steps=4,
        ),
        World(
            "one turn",
            "as many steps as it takes to draw each unit once",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
            noise_multiplier=0.3,
            slots=4,
            batch_size=1,
            steps=4,
            runs=500,
        ),
        World(
            "tied",
            "a matrix used sixteen times, its gradients kept as factors",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=lambda loss_of: TiedBook(_EACH_ITS_ROW),
            form=Form.FACTORS,
        ),
        World(
            "records as factors",
            "a canary of twelve records, its gradients kept as factors",
            canary=_unit(2, records=12),
            others=(_unit(0), _unit(1)),
            model=_book(_EACH_ITS_ROW),
            form=Form.FACTORS,
        ),
        World(
            "two ranks",
            "rows that two processes own, the canary's the second one",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_FAR_APART),
            ranks=2,
        ),
        World(
            "more ranks",
            "noise of several processes that is averaged away",
            canary=_unit(2),
            others=(_unit(0), _unit(1)),
            model=_book(_FAR_APART),
            ranks=4,
            runs=600,
            slow=True,
        ),
        World(
            "idle ranks",
            "more processes than units, and the canary the first of the data",
            canary=_unit(2),
            others=(_unit(0),),
            model=_book([Token(0, (0.0,)), Token(1, (0.0,)), Token(2, (LOUD,))]),
            slots=2,
            batch_size=2,
            ranks=4,
            canary_first=True,
            slow=True,
        ),
    )
}
