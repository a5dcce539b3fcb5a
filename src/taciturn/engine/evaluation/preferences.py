"""Learnt preferences: how many pairs of answers a fitted model ranks as people did.

An answer's implicit reward is by how much likelier the fitted model holds it than the base does.
A pair is right if that of the chosen answer is the higher one; a model that has learned nothing is
right in half of them, and one that has not moved in none.

Shapes: U units of a microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.evaluation.likelihood import (
    Likelihood,
    UnitScores,
    token_scores,
    unit_sums,
)
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.preference import PreferenceLoss, sequences
from taciturn.engine.privacy.types import UnitBatch


@dataclass(frozen=True, slots=True)
class Preferences:
    """Figures of pairs, exact.

    Attributes:
        pairs: how many there are.
        right: of them, how many the model ranks as people did.
        base, fitted: likelihood of the chosen answers under either model.
    """

    pairs: int
    right: int
    base: Likelihood
    fitted: Likelihood

    @property
    def accuracy(self) -> float:
        """Share of pairs that are right."""
        return self.right / max(1, self.pairs)


@dataclass(frozen=True, slots=True, repr=False)
class UnitPreferences:
    """The same per unit, in the order of the data set. Private unless the data are public.

    Attributes:
        pairs_U: how many there are.
        right_U: of them, how many the model ranks as people did.
        base, fitted: scores of the chosen answers under either model.
    """

    pairs_U: Tensor
    right_U: Tensor
    base: UnitScores
    fitted: UnitScores

    def total(self) -> Preferences:
        """All pairs together, every one counting the same."""
        counts = int(self.pairs_U.sum()), int(self.right_U.sum())
        return Preferences(*counts, self.base.total(), self.fitted.total())

    @property
    def shares_U(self) -> Tensor:
        """Each unit's share of pairs that are right; no number without a pair."""
        return self.right_U / self.pairs_U


@dataclass(frozen=True, slots=True, repr=False)
class Margins:
    """Mean over each unit's pairs of log p(chosen) - log p(rejected); NaN without a pair. Private.

    Attributes:
        fitted_U: under the fitted model.
        base_U: under its base.
    """

    fitted_U: NDArray[np.float64]
    base_U: NDArray[np.float64]


def preferences(fitted: Any, dataset: TokenizedDataset, record_tokens: int) -> UnitPreferences:
    """Judge every pair by a model with an adapter, against the base below it."""
    sums_8U = torch.zeros(8, 0, dtype=torch.float64)  # of no unit, which is no reason to fail
    if dataset.n_units:
        sums_8U = unit_sums(fitted, dataset, record_tokens, _scored, make=pair_loss)
    pairs_U, right_U, *of_models = sums_8U
    base, adapted = (
        UnitScores(nats_U, tokens_U.long(), correct_U.long())
        for nats_U, tokens_U, correct_U in (of_models[:3], of_models[3:])
    )
    return UnitPreferences(pairs_U, right_U, base, adapted)


def pair_margins(fitted: Any, dataset: TokenizedDataset, record_tokens: int) -> Margins:
    """Score each unit's pairs by a model with an adapter and by the base below it."""
    pairs_U, *sums_2U = unit_sums(fitted, dataset, record_tokens, _margins, make=pair_loss).numpy()
    counts_U = np.where(pairs_U > 0, pairs_U, np.nan)
    return Margins(*(sums_U / counts_U for sums_U in sums_2U))


def pair_loss(model: Any) -> PreferenceLoss:
    """The loss whose margins are wanted; they do not depend on beta."""
    return PreferenceLoss(model, 1.0)


def _present(batch: UnitBatch) -> Tensor:
    """1 for each row that has a target; fillers have none."""
    return (batch.loss_weights_BT > 0).any(1).double().cpu()


def _margins(loss: CausalLmLoss, batch: UnitBatch) -> Tensor:
    """Pairs, and the sums of their margins under both models, of each unit; [3, U]."""
    assert isinstance(loss, PreferenceLoss)
    winners, losers = sequences(batch)
    own_B = loss.nats(losers) - loss.nats(winners)
    with loss.base():
        of_base_B = loss.nats(losers) - loss.nats(winners)
    present_B = _present(batch)
    rows_3B = torch.stack(
        (present_B, own_B.double().cpu() * present_B, of_base_B.double().cpu() * present_B)
    )
    return rows_3B.new_zeros(3, batch.n_units).index_add(1, batch.unit_of_B.cpu(), rows_3B)


def _scored(loss: CausalLmLoss, batch: UnitBatch) -> Tensor:
    """Pairs, right ones, and nats, tokens and hits of the chosen answers by both models; [8, U]."""
    assert isinstance(loss, PreferenceLoss)
    present_B = _present(batch)
    right_B = (loss.margins(batch) > 0).double().cpu() * present_B
    rows_2B = torch.stack((present_B, right_B))
    counted = rows_2B.new_zeros(2, batch.n_units).index_add(1, batch.unit_of_B.cpu(), rows_2B)
    winners, _ = sequences(batch)
    with loss.base():
        of_base_3U = token_scores(loss, winners)
    return torch.cat((counted, of_base_3U, token_scores(loss, winners)))
