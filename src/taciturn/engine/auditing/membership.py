"""Membership inference: who was in the training data? For the owner, who knows the answer.

Three scores, higher for members:

- loss: log-probability per token (Yeom et al. 2018);
- Min-K%++: the lowest k% of the tokens, each log-probability centred and scaled by those of all
  tokens in its place (Zhang et al. 2024, arXiv 2404.02936);
- ratio: log-probability per token under the fitted model minus that under the base model
  (calibration by a reference model: Watson et al. 2022, Mireshghallah et al. 2022).

Pairs of answers, of a fit to preferences, have two of their own: margin, the log-probability of the
chosen answer minus that of the rejected one, and reward, by how much the fit has widened that.

A unit is scored as training weighs it: each record by the mean over its own tokens, a unit by the
mean over its records. The base model is scored too. It has seen nobody, so what it tells apart is
not membership: the two groups differ by themselves.

Shapes: U units, B sequences, N positions with a target.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.auditing.intervals import Floats
from taciturn.engine.auditing.roc import Promise, Roc, roc
from taciturn.engine.auditing.tokens import token_statistics
from taciturn.engine.evaluation.likelihood import unit_sums
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.types import UnitBatch
from taciturn.errors import DataError

Attack = Literal["loss", "min-k%++", "ratio", "margin", "reward"]
OWNER_ONLY = "private, exact: for the owner's eyes only"

# Where a model is certain, the spread is zero and rounding is all there is to scale.
_LEAST_STD = 1e-6
_MOST_SHARED = 0.5


@dataclass(frozen=True, slots=True, repr=False)
class Evidence:
    """Scores that one model gives every unit; NaN for a unit without a predicted token. Private.

    Attributes:
        log_p_U: log-probability per token.
        min_k_U: Min-K%++.
    """

    log_p_U: Floats
    min_k_U: Floats


@dataclass(frozen=True, slots=True)
class AttackResult:
    """One score, of one model.

    Attributes:
        attack: which score.
        model: "fitted", or "base": the control, whose AUC is 0.5 where the groups are alike.
        roc: how well it separates.
    """

    attack: Attack
    model: Literal["fitted", "base"]
    roc: Roc


@dataclass(frozen=True, slots=True, repr=False)
class Membership:
    """Outcome of membership inference. Exact figures of private units: not to be passed on.

    Attributes:
        attacks: of the fitted model and, as a control, of the base model.
        n_members: units with text to predict.
        n_non_members: the same of the others.
        confidence: of every interval.
        policy: the guarantee that the model carries.
        scores: one row per unit: member, and each score of the fitted model.
        basis: whose eyes it is for.
    """

    attacks: tuple[AttackResult, ...]
    n_members: int
    n_non_members: int
    confidence: float
    policy: str
    scores: pd.DataFrame
    basis: str = OWNER_ONLY

    def frame(self) -> pd.DataFrame:
        """One row per attack and model."""
        return pd.DataFrame([_flat(attack) for attack in self.attacks])

    def to_dict(self) -> dict[str, Any]:
        """The same with every unit's scores, as plain values for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["attacks"] = [dataclasses.asdict(attack) for attack in self.attacks]
        scores = self.scores.astype(object).where(self.scores.notna(), None)
        return {**plain, "scores": scores.to_dict(orient="records")}

    def __repr__(self) -> str:
        return f"Membership({self.basis})"


def evidence(
    model: Any, dataset: TokenizedDataset, max_tokens: int, min_k_share: float
) -> Evidence:
    """Score every unit of `dataset` by one model, in one forward pass."""
    score = partial(_scored, share=min_k_share)
    log_p_U, min_k_U, records_U = unit_sums(model, dataset, max_tokens, score).numpy()
    counted_U = np.where(records_U > 0, records_U, np.nan)
    return Evidence(log_p_U / counted_U, min_k_U / counted_U)


def scores_of(fitted: Evidence, base: Evidence) -> dict[Attack, Floats]:
    """The fitted model's scores of the same units."""
    return {
        "loss": fitted.log_p_U,
        "min-k%++": fitted.min_k_U,
        "ratio": fitted.log_p_U - base.log_p_U,
    }


def control_scores(base: Evidence) -> dict[Attack, Floats]:
    """The base model's."""
    return {"loss": base.log_p_U, "min-k%++": base.min_k_U}


def check_apart(members: TokenizedDataset, non_members: TokenizedDataset) -> None:
    """Raise DataError if most non-members are members: no attack could tell them apart."""
    inside = {_content(members, unit) for unit in range(members.n_units)}
    shared = sum(_content(non_members, unit) in inside for unit in range(non_members.n_units))
    if shared > _MOST_SHARED * non_members.n_units:
        raise DataError(
            "most non-members have word for word the text of members; give units that were not "
            "in the training data"
        )


def attacked(
    members: dict[Attack, Floats],
    non_members: dict[Attack, Floats],
    model: Literal["fitted", "base"],
    confidence: float,
    promise: Promise | None,
) -> list[AttackResult]:
    """Try every score; units without one are left out."""
    return [
        AttackResult(
            attack, model, roc(_present(scores), _present(non_members[attack]), confidence, promise)
        )
        for attack, scores in members.items()
    ]


def _scored(loss: CausalLmLoss, batch: UnitBatch, share: float) -> Tensor:
    """Sums over each unit's records: log-probability per token, Min-K%++, and 1; [3, U]."""
    statistics = token_statistics(loss, batch)
    z_N = (statistics.log_p_N - statistics.mean_N) / statistics.std_N.clamp(min=_LEAST_STD)
    sums_3U = torch.zeros(3, batch.n_units, dtype=torch.float64)
    row_N, log_p_N, z_N = (
        statistics.row_N.cpu(),
        statistics.log_p_N.double().cpu(),
        z_N.double().cpu(),
    )
    for row, unit in enumerate(batch.unit_of_B.tolist()):
        own = row_N == row
        if own.any():
            figures = log_p_N[own].mean(), min_k(z_N[own], share), torch.tensor(1.0).double()
            sums_3U[:, unit] += torch.stack(figures)
    return sums_3U


def min_k(z_N: Tensor, share: float) -> Tensor:
    """Mean of the lowest `share` of a record's values, at least one."""
    count = max(1, int(len(z_N) * share))
    return z_N.sort().values[:count].mean()


def _content(dataset: TokenizedDataset, unit: int) -> frozenset[bytes]:
    return frozenset(record.input_ids.tobytes() for record in dataset.records(unit))


def _present(scores_U: Floats) -> Floats:
    return scores_U[np.isfinite(scores_U)]


def _flat(result: AttackResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "attack": result.attack,
        "model": result.model,
        "auc": result.roc.auc,
        "auc_low": result.roc.auc_interval[0],
        "auc_high": result.roc.auc_interval[1],
    }
    for point in result.roc.points:
        name = f"tpr_at_{point.fpr:g}"
        low, high = point.tpr_interval or (None, None)
        row |= {name: point.tpr, f"{name}_low": low, f"{name}_high": high}
        row[f"{name}_promised"] = point.promised_tpr
    return row
