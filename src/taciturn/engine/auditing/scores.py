"""The score of a canary: how much better the fitted model predicts it than the base model does.

Black box: losses are all that is looked at. The base model's loss is subtracted because some texts
are hard for any model, which says nothing about who was in.

Shapes: N canaries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from taciturn.engine.data.planted import Planted
from taciturn.engine.data.tokenize import TokenizedDataset, Tokenizer, prepare
from taciturn.engine.evaluation.likelihood import unit_scores
from taciturn.errors import ModelError

Scores = NDArray[np.float64]


def canary_data(planted: Planted, tokenizer: Tokenizer, folder: Path) -> TokenizedDataset:
    """The canaries as the fit read them, all of them with targets, in a new `folder`."""
    return prepare(planted.rows(), planted.spec(), tokenizer, planted.max_tokens, folder, seed=0)


def nats_per_token(model: Any, canaries: TokenizedDataset, max_tokens: int) -> Scores:
    """The model's loss on each canary; [N]."""
    found = unit_scores(model, canaries, max_tokens)
    losses_N: Scores = (found.nats_U / found.tokens_U.clamp(min=1)).numpy()
    return losses_N


def gains(base_N: Scores, fitted_N: Scores) -> Scores:
    """Scores from losses: higher where the fit made a canary likelier.

    Raises:
        ModelError: a loss is not finite, so the model cannot be audited by it.
    """
    scores_N = base_N - fitted_N
    if not np.isfinite(scores_N).all():
        raise ModelError(
            "the loss of some canaries is not a finite number, so nothing can be concluded from "
            "it; fit with a lower learning_rate, or with dtype='float32'"
        )
    return scores_N


def auc(scores_N: Scores, included_N: NDArray[np.bool_]) -> float:
    """Chance that a canary that was in scores higher than one that was out; 0.5 without both."""
    n_in = int(included_N.sum())
    n_out = len(included_N) - n_in
    if not n_in or not n_out:
        return 0.5
    ranks = stats.rankdata(scores_N)[included_N].sum()
    return float((ranks - n_in * (n_in + 1) / 2) / (n_in * n_out))
