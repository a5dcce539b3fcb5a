"""What is measured: the cells of the table and how often. `FULL` is the published one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

from steps.lengths import phee_lengths
from steps.model import Method, ModelShape
from steps.variants import Task
from steps.workload import Workload

METHODS: tuple[Method, ...] = get_args(Method)
MEMORY_STEPS = 2
_LONG_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of the table of steps.

    Attributes:
        method: what is trained.
        tokens: of each record.
        sequences: of a batch.
        unit_size: sequences of one privacy unit.
    """

    method: Method
    tokens: int
    sequences: int
    unit_size: int

    @property
    def name(self) -> str:
        """For `--only` and the table."""
        return f"{self.method}/T{self.tokens}/units-of-{self.unit_size}"

    def task(self, shape: ModelShape, batches: int) -> Task:
        """Random tokens for that many batches."""
        lengths = [[self.tokens] * self.sequences] * batches
        workload = Workload.random(lengths, shape.vocabulary)
        return Task(self.method, shape, workload, self.unit_size)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        grid: (tokens, sequences) of the cells with units of one sequence.
        unit_grid: the same for units of `unit_size` sequences.
        tries: of a variant in a round, while other processes disturb it.
        clock: one of CLOCKS.
        rounds: of each cell, after one step of each variant whose operations are counted.
        long_rounds: the same for batches of more than 2,048 tokens.
        memory_processes: in which the peak of ours with DP is measured; the median counts. It
            varies by some 2% from one to the next, that of the others by next to nothing.
        epoch_records: records of an epoch of real lengths.
        epoch_sequences: records of one of its batches.
        epoch_rounds: epochs of each variant.
        growth_sequences: batch sizes at which time is measured, in records of 64 tokens.
        growth_rounds: of each.
        rows: numbers of training rows at which memory is measured.
        shape: of the model.
        only: keep what has one of these in its name; all if empty.
    """

    grid: tuple[tuple[int, int], ...] = ((64, 32), (256, 8), (1024, 2), (4096, 1))
    unit_grid: tuple[tuple[int, int], ...] = ((64, 32), (256, 8), (1024, 4), (4096, 4))
    unit_size: int = 4
    tries: int = 3
    clock: str = "wall"
    rounds: int = 7
    long_rounds: int = 3
    memory_processes: int = 3
    epoch_records: int = 192
    epoch_sequences: int = 32
    epoch_rounds: int = 3
    growth_sequences: tuple[int, ...] = (2, 8, 32, 128, 512, 2048)
    growth_rounds: int = 2
    rows: tuple[int, ...] = (50_000, 500_000, 5_000_000)
    shape: ModelShape = field(default_factory=ModelShape)
    only: tuple[str, ...] = ()

    def wanted(self, name: str) -> bool:
        """Whether `only` lets this through."""
        return not self.only or any(part in name for part in self.only)

    def cells(self) -> Iterator[Cell]:
        """All cells of the table of steps, those of one-sequence units first."""
        for unit_size, grid in ((1, self.grid), (self.unit_size, self.unit_grid)):
            for method in METHODS:
                for tokens, sequences in grid:
                    cell = Cell(method, tokens, sequences, unit_size)
                    if self.wanted(cell.name):
                        yield cell

    def batches(self, cell: Cell) -> int:
        """Batches of a cell: one for counting operations, then one a round."""
        long = cell.tokens * cell.sequences > _LONG_TOKENS
        return 1 + (min(self.rounds, self.long_rounds) if long else self.rounds)

    def epoch(self, method: Method) -> Task:
        """Epochs of PHEE-like lengths, one for warming up and the others to be measured."""
        lengths = [
            length
            for seed in range(1 + self.epoch_rounds)
            for length in phee_lengths(self.epoch_records, seed)
        ]
        size = self.epoch_sequences
        rows = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        return Task(method, self.shape, Workload.random(rows, self.shape.vocabulary))


FULL = Settings()
QUICK = Settings(
    grid=((64, 8),),
    unit_grid=((64, 8),),
    tries=1,
    rounds=2,
    memory_processes=1,
    epoch_records=32,
    epoch_sequences=16,
    epoch_rounds=1,
    growth_sequences=(2, 8, 32),
    growth_rounds=1,
    rows=(5_000, 20_000),
)
"""Shows that everything works; its figures mean nothing."""
