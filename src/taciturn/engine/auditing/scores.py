"""The score of a canary: the share of its loss under the base model that the fit took away.

Black box: losses are all that is looked at. The base model's is the yardstick because some texts
are hard for any model, and fall further for that, which says nothing about who was in.

Of a canary that is a pair of answers it is the reward: by how much the fit has widened the margin
between its chosen answer and its rejected one, which is what such a fit is about.

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
from taciturn.engine.evaluation.preferences import pair_margins
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
    return _finite((base_N - fitted_N) / np.maximum(base_N, _LEAST_NATS))


def rewards(fitted: Any, canaries: TokenizedDataset, record_tokens: int) -> Floats:
    """Scores of pairs from a model with an adapter and the base below it.

    Raises ModelError as `shares` does.
    """
    margins = pair_margins(fitted, canaries, record_tokens)
    return _finite(margins.fitted_U - margins.base_U)


def _finite(scores_N: Floats) -> Floats:
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
