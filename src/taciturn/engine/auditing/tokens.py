"""Statistics of a model's prediction of every token: its log-probability, and mean and spread of
the others'.

One forward pass; logits are made and used up some rows at a time.

Shapes: B sequences, T tokens, V vocabulary, N positions with a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.types import UnitBatch

_CHUNK = 1 << 22  # elements of [rows, V] held at once, as in engine/privacy/head.py
# Of a token with less than e^-1e4 nothing is left in the mean; minus infinity times zero would be.
_LEAST = -1e4


@dataclass(frozen=True, slots=True, repr=False)
class TokenStatistics:
    """Statistics of each token that is to be predicted; private unless the text is public.

    Attributes:
        row_N: its sequence.
        log_p_N: its log-probability, given what precedes it.
        mean_N: mean of the log-probabilities of all tokens, each weighted with its probability.
        std_N: their standard deviation, weighted in the same way.
    """

    row_N: Tensor
    log_p_N: Tensor
    mean_N: Tensor
    std_N: Tensor


@torch.no_grad()
def token_statistics(loss: CausalLmLoss, batch: UnitBatch) -> TokenStatistics:
    """Statistics of the batch's targets, sequence after sequence; fp32."""
    # The position before a target predicts it.
    place_N = F.pad(batch.loss_weights_BT[:, 1:], (0, 1)).flatten().nonzero()[:, 0]
    id_N = batch.input_ids_BT.flatten()[place_N + 1]
    logits_at, vocabulary = _logits(loss, batch)
    size = max(1, _CHUNK // vocabulary)
    chunks = zip(place_N.split(size), id_N.split(size), strict=True)
    parts = [_statistics(logits_at(places), ids) for places, ids in chunks]
    log_p_N, mean_N, std_N = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return TokenStatistics(place_N // batch.input_ids_BT.shape[1], log_p_N, mean_N, std_N)


def _logits(loss: CausalLmLoss, batch: UnitBatch) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return a function that gives the logits at some of the B * T positions, and V."""
    terms = loss.terms(batch)
    if terms is None:
        logits_NV = loss.logits(batch).flatten(0, 1)
        return logits_NV.__getitem__, logits_NV.shape[1]
    flat = [(x_BTD.flatten(0, 1), weight_VD) for x_BTD, weight_VD in terms]

    def at(places: Tensor) -> Tensor:
        (x_ND, weight_VD), *adapters = flat
        logits_NV = x_ND[places] @ weight_VD.T
        for low_NR, weight_VR in adapters:
            logits_NV = logits_NV + low_NR[places] @ weight_VR.T
        return logits_NV

    return at, len(flat[0][1])


def _statistics(logits_NV: Tensor, id_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p_NV = logits_NV.float().log_softmax(-1).clamp_(min=_LEAST)
    p_NV = log_p_NV.exp()
    mean_N = (p_NV * log_p_NV).sum(-1)
    target_N = log_p_NV.gather(1, id_N[:, None])[:, 0]
    # Around the mean, not as a difference of squares: a confident model's spread would cancel.
    variance_N = (p_NV * log_p_NV.sub_(mean_N[:, None]).square_()).sum(-1)
    return target_N, mean_N, variance_N.sqrt()
