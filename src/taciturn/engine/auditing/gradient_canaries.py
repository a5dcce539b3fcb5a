"""Canaries in gradient space: the attacker of the privacy proof, against the engine itself.

Canary i is a unit whose gradient is one known direction, its own and far longer than the clip norm
(the Dirac canary of Nasr et al. 2023, arXiv 2302.07956, section 5). Who sees every released
gradient then sees what the proof says an attacker sees at most: at each step a value N(0, s^2) for
a canary that did not join and N(1, s^2) for one that did, s the noise multiplier. What lies between
the engine's promise and what this attacker proves is statistics, not a weak attack (Steinke et al.
2023, arXiv 2305.08846, section 6).

How canaries enter. Nothing is put in between the engine's parts: there is no hook after the
per-unit gradients, and no gradient is swapped for another. The model is the least that has a row of
its own for each token: an embedding whose values are the loss. Canary i's text is token i, so its
gradient, made by the engine's own rules, is a spike on row i; the loss is linear, so it is the same
spike at every step. The rest is what a fit runs: data on disk, `microbatches`, `private_step`,
`DpSgdMechanism`, `TrainingState`.

A canary that is out leaves a unit without targets, whose gradient is zero: the number of units is
public in our guarantee, so absence must not show in it.

Shapes: M canaries, B sequences, T tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from taciturn.accounting.privacy_loss import SampledGaussian
from taciturn.data.tokens.encoding import EncodedRecords
from taciturn.data.tokens.store import TokenizedDataset, TokenWriter
from taciturn.engine.auditing.claim import DpSgdRun
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.privacy.types import PrivateGradient, UnitBatch
from taciturn.engine.training.batch import BatchLimits
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, private_step
from taciturn.planning.optimizer import OptimizerConfig

_ROWS = "rows_M1"
# A record's gradient over the clip norm: clipping, and nothing but clipping, makes it 1.
_LOUDNESS = 100.0
_TOKENS = 2  # of a record: nothing precedes the first; the second is to be predicted
_LIMITS = BatchLimits(tokens=512, units=256, max_tokens=_TOKENS)
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts under audit. The defaults are what a fit runs; tests put broken ones in."""

    step: Callable[..., Any] = private_step
    mechanism: Callable[..., DpSgdMechanism] = DpSgdMechanism
    streams: Callable[[], Streams] = Streams.fresh


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings that an engine is audited at.

    Attributes:
        run: what its guarantee depends on.
        l2_clip_norm: bound on one unit's contribution.
        records_per_unit: how many records a canary has; its gradient is their sum.
        form: how per-unit gradients are kept.
        limits: of a microbatch.
        device: where it runs.
    """

    run: DpSgdRun
    l2_clip_norm: float = 1.0
    records_per_unit: int = 1
    form: Form = Form.AUTO
    limits: BatchLimits = _LIMITS
    device: torch.device = _CPU

    def mechanism(self, engine: Engine, canaries: int) -> DpSgdMechanism:
        """The engine's own mechanism over so many units.

        Raises:
            ValueError: so few that a step is expected to draw none.
        """
        probability = self.run.sampling_probability
        batch_size = round(probability * canaries)
        if batch_size < 1:
            raise ValueError(
                f"canaries={canaries} are too few at sampling_probability={probability:g}: no step "
                f"is expected to draw one; use at least {round(1 / probability)}"
            )
        return engine.mechanism(
            n_units=canaries,
            expected_batch_size=batch_size,
            steps=self.run.steps,
            noise_multiplier=self.run.noise_multiplier,
            l2_clip_norm=self.l2_clip_norm,
            parameter_names=(_ROWS,),
        )


class CanaryRows(nn.Module):
    """An embedding that is its own loss: a record's gradient is a spike on its token's row."""

    def __init__(self, canaries: int, loudness: float) -> None:
        super().__init__()
        self.rows_M1 = nn.Parameter(torch.zeros(canaries, 1))
        self.loudness = loudness

    def forward(self, batch: UnitBatch) -> Tensor:
        """One loss per sequence, [B]."""
        values_BT = F.embedding(batch.input_ids_BT, self.rows_M1).squeeze(-1)
        return self.loudness * (values_BT * batch.loss_weights_BT).sum(1)


class WatchedState(TrainingState):
    """Trains as any state does, and keeps the evidence of one who sees what is released.

    Attributes:
        evidence_M: log-likelihood ratio of "in" over "out" for each canary, summed over steps. No
            test is better (Neyman and Pearson 1933). Where every unit joins every step it grows
            with the inner products of the released gradients and the canary's direction.
    """

    def __init__(self, rows: CanaryRows, mechanism: DpSgdMechanism) -> None:
        config = OptimizerConfig(learning_rate=1e-3, steps=mechanism.steps)
        super().__init__(trainable_parameters(rows), config, private=True)
        self.evidence_M = np.zeros(mechanism.n_units)
        self._scale = mechanism.expected_batch_size / mechanism.l2_clip_norm
        self._law = SampledGaussian(mechanism.sampling_probability, mechanism.noise_multiplier)

    def apply(self, private: PrivateGradient) -> None:
        """A look at the gradient, and one optimiser step."""
        shown_M = private.values[_ROWS].squeeze(1).double().cpu().numpy() * self._scale
        self.evidence_M += self._law.loss(-shown_M)
        super().apply(private)


def write_canaries(
    folder: Path, included_M: NDArray[np.bool_], records_per_unit: int
) -> TokenizedDataset:
    """The data of these coins, on disk as a fit reads it: unit i is canary i, or has no target."""
    canaries = len(included_M)
    records = canaries * records_per_unit
    targets = np.zeros((canaries, records_per_unit, _TOKENS), dtype=np.bool_)
    targets[included_M, :, 1:] = True
    ids = np.repeat(np.arange(canaries, dtype=np.int32), records_per_unit * _TOKENS)
    encoded = EncodedRecords(ids, targets.reshape(-1), np.full(records, _TOKENS))
    writer = TokenWriter(folder)
    try:
        writer.add(encoded, np.arange(records) % records_per_unit == 0)
        writer.close("gradient canaries")
    finally:
        writer.abandon()
    return TokenizedDataset.open(folder)


def attack(
    settings: EngineSettings, included_M: NDArray[np.bool_], engine: Engine, ranks: Ranks = ALONE
) -> NDArray[np.float64]:
    """Train on the canaries of these coins; the evidence that each was in, [M].

    Every rank calls it with the same coins, and finds the same.
    """
    mechanism = settings.mechanism(engine, len(included_M))
    rows = CanaryRows(len(included_M), _LOUDNESS * settings.l2_clip_norm).to(settings.device)
    state, streams = WatchedState(rows, mechanism), engine.streams()
    with tempfile.TemporaryDirectory() as folder:
        data = write_canaries(Path(folder), included_M, settings.records_per_unit)
        for _ in range(mechanism.steps):
            engine.step(
                rows, data, mechanism, state, streams, settings.limits, settings.form, ranks
            )
    # What is not a number is no evidence: it counts as the least there can be.
    return np.nan_to_num(state.evidence_M, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
