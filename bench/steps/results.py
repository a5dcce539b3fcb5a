"""What was measured, as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from steps.measure import Spread


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one cell.

    Attributes:
        cell: its name.
        method, tokens, sequences, unit_size: what the cell is.
        variant: name in the registry.
        seconds: of one step.
        ratio: to the plain loop, round by round.
        records_ratio: to ours at record level on the same records; only for units of several.
        flops: of one step.
        peak_bytes: above the loaded model.
        failure: how it failed, if it did; then numbers are None.
        others: how much of one core other processes took, in the worst round.
    """

    cell: str
    method: str
    tokens: int
    sequences: int
    unit_size: int
    variant: str
    seconds: Spread | None = None
    ratio: Spread | None = None
    records_ratio: Spread | None = None
    flops: int | None = None
    peak_bytes: int | None = None
    failure: str | None = None
    others: float = 0.0


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One variant on real lengths.

    Attributes:
        seconds: of an epoch.
        ratio: to the plain loop.
        trainer_ratio: to the Hugging Face Trainer.
        tokens: of an epoch, padding not counted.
        others: as in Row.
    """

    method: str
    variant: str
    tokens: int
    seconds: Spread | None = None
    ratio: Spread | None = None
    trainer_ratio: Spread | None = None
    failure: str | None = None
    others: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens per second at the median."""
        return self.tokens / self.seconds.median if self.seconds else None


@dataclass(frozen=True, slots=True)
class Growth:
    """Time against tokens of a batch, its log-log fit, and the slope of the largest sizes alone."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    slope: float
    r_squared: float
    tail_slope: float


@dataclass(frozen=True, slots=True)
class RowsPeak:
    """Memory of a process that has prepared `rows` rows and trained on them.

    Attributes:
        peak_bytes: the most that was resident; pages of mapped files count, which the system may
            take back at any time.
        own_bytes: resident at the end without those pages; None where the system does not say.
    """

    rows: int
    peak_bytes: int
    own_bytes: int | None = None


@dataclass
class Results:
    """Everything of one run; `machine` says where and with what."""

    machine: dict[str, str] = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    epochs: list[EpochRow] = field(default_factory=list)
    growth: dict[str, Growth] = field(default_factory=dict)
    rows: list[RowsPeak] = field(default_factory=list)
    probes: dict[str, str] = field(default_factory=dict)

    def row(self, cell: str, variant: str) -> Row | None:
        """One row of the table of steps."""
        found = [row for row in self.steps if (row.cell, row.variant) == (cell, variant)]
        return found[0] if found else None

    def epoch(self, method: str, variant: str) -> EpochRow | None:
        """One row of the table of epochs."""
        found = [row for row in self.epochs if (row.method, row.variant) == (method, variant)]
        return found[0] if found else None

    def broken(self) -> list[str]:
        """What failed and must not: anything but Opacus."""
        rows: list[Row | EpochRow] = [*self.steps, *self.epochs]
        return [
            f"{row.variant}: {row.failure}"
            for row in rows
            if row.failure is not None and not row.variant.startswith("opacus")
        ]

    def others(self) -> float:
        """How much of one core other processes took, in the worst round of all."""
        return max((row.others for row in (*self.steps, *self.epochs)), default=0.0)

    @classmethod
    def joined(cls, texts: Iterable[str]) -> Results:
        """What `json` wrote of several parts, in the order of the whole; later parts win."""
        steps: dict[tuple[str, str], Row] = {}
        epochs: dict[tuple[str, str], EpochRow] = {}
        whole = cls()
        for part in map(json.loads, texts):
            whole.machine |= part["machine"]
            whole.probes |= part["probes"]
            for row in map(_with_spreads, part["steps"]):
                steps[row["cell"], row["variant"]] = Row(**row)
            for row in map(_with_spreads, part["epochs"]):
                epochs[row["method"], row["variant"]] = EpochRow(**row)
            whole.growth |= {method: Growth(**fit) for method, fit in part["growth"].items()}
            whole.rows = [RowsPeak(**row) for row in part["rows"]] or whole.rows
        whole.steps = sorted(
            steps.values(), key=lambda row: (row.unit_size, row.method != "lora", row.tokens)
        )
        whole.epochs = sorted(epochs.values(), key=lambda row: row.method != "lora")
        return whole

    def json(self, **more: object) -> str:
        """All of it, readable, and what follows from it."""
        return json.dumps({**more, **asdict(self)}, indent=1)


def _with_spreads(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: Spread(**value) if isinstance(value, dict) else value for key, value in row.items()
    }
