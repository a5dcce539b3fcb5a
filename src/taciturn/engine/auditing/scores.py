"""The score of a canary: the share of its loss under the base model that the fit took away.

Black box: losses are all that is looked at. The base model's is the yardstick because some texts
are hard for any model, and fall further for that, which says nothing about who was in.

Shapes: N canaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.auditing import intervals
from taciturn.engine.auditing.intervals import Floats
from taciturn.engine.evaluation.likelihood import unit_scores
from taciturn.errors import ModelError

_LEAST_NATS = 1e-6  # a text without words of its own has none


def nats(model: Any, canaries: TokenizedDataset, max_tokens: int) -> Floats:
    """The model's loss on each canary, over its targets; [N]."""
    losses_N: Floats = unit_scores(model, canaries, max_tokens).nats_U.numpy()
    return losses_N


def shares(base_N: Floats, fitted_N: Floats) -> Floats:
    """Scores from losses: 1 where the fit knows a canary by heart, 0 where it learned nothing.

    Raises:
        ModelError: a loss is not finite, so the model cannot be audited by it.
    """
    scores_N: Floats = (base_N - fitted_N) / np.maximum(base_N, _LEAST_NATS)
    if not np.isfinite(scores_N).all():
        raise ModelError(
            "the loss of some canaries is not a finite number, so nothing can be concluded from "
            "it; fit with a lower learning_rate, or with dtype='float32'"
        )
    return scores_N


def auc(scores_N: Floats, included_N: NDArray[np.bool_]) -> float:
    """Chance that a canary that was in scores higher than one that was out; 0.5 without both."""
    if included_N.all() or not included_N.any():
        return 0.5
    return intervals.auc(scores_N[included_N], scores_N[~included_N])
