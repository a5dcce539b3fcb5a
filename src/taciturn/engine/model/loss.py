"""The loss, owned by the engine: each record is judged by its own tokens and nothing else.

Shapes: B sequences, T tokens, V vocabulary, N positions with a target; R rows of L tokens, packed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taciturn.engine.model.output import gives_own_logits, model_logits, output_terms
from taciturn.engine.model.rope import independent_length
from taciturn.engine.privacy.head import head_cross_entropy
from taciturn.engine.privacy.packing import Packing
from taciturn.engine.privacy.types import UnitBatch
from taciturn.errors import GuaranteeError


class CausalLmLoss(nn.Module):
    """Per-sequence weighted cross-entropy of a Hugging Face causal LM.

    forward(batch) -> [B], fp32: sum over t of loss_weights[t] * -log p(token t | tokens before t).
    The weights come with the batch and are one over the record's own number of targets, never over
    the batch's (PITFALLS 1).

    A packed batch goes through the model in its packed rows (`packed.apart_in_rows`).

    Attributes:
        max_tokens: longest T at which the records of a batch stay independent; None: any.
        packs: it was tried and found exact with packed batches (`training/trainable.py`).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.max_tokens = independent_length(model)
        self._fused = gives_own_logits(model)
        self.packs = False

    def forward(self, batch: UnitBatch) -> Tensor:
        terms = self.terms(batch)
        if terms is not None:
            ids_BT, weights_BT = batch.input_ids_BT, batch.loss_weights_BT
            return head_cross_entropy(terms, ids_BT, weights_BT, batch.packing)
        logits = self.logits(batch)
        if batch.packing is not None:
            return packed_cross_entropy(logits, batch.packing)
        return weighted_cross_entropy(logits, batch.input_ids_BT, batch.loss_weights_BT)

    def terms(self, batch: UnitBatch) -> list[tuple[Tensor, Tensor]] | None:
        """What adds up to the logits (`output_terms`); None where only the model can make them."""
        self._check_length(batch)
        return output_terms(self.model, *_inputs(batch)) if self._fused else None

    def logits(self, batch: UnitBatch) -> Tensor:
        """Logits [B, T, V], or [R, L, V] of a packed batch.

        Raises:
            GuaranteeError: records would not be independent.
        """
        self._check_length(batch)
        # Right padding under a causal mask: no real token can see a padded one, so no attention
        # mask is needed, and the logits of padded positions carry weight zero.
        return model_logits(self.model, *_inputs(batch))

    def _check_length(self, batch: UnitBatch) -> None:
        tokens = _inputs(batch)[0].shape[1]
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise GuaranteeError(
                f"a batch of {tokens} tokens is longer than {self.max_tokens}, from where this "
                "model's rotary embedding depends on the longest record of the batch; "
                f"set max_tokens={self.max_tokens}"
            )


def _inputs(batch: UnitBatch) -> tuple[Tensor, Tensor | None]:
    """Token ids, and position ids where they are not 0, 1, 2 ... in each row."""
    if batch.packing is None:
        return batch.input_ids_BT, None
    return batch.packing.input_ids_RL, batch.packing.position_ids_RL


def packed_cross_entropy(logits_RLV: Tensor, packing: Packing) -> Tensor:
    """As `weighted_cross_entropy`, of records in packed rows; fp32 [B]."""
    kept_RL = packing.loss_weights_RL[:, 1:] != 0
    record_N = packing.record_RL[:, 1:][kept_RL]
    ids_RL, weights_RL = packing.input_ids_RL, packing.loss_weights_RL
    weighted_N = _weighted(logits_RLV, ids_RL, weights_RL, kept_RL)
    return weighted_N.new_zeros(len(packing.lengths)).index_add(0, record_N, weighted_N)


def weighted_cross_entropy(
    logits_BTV: Tensor, input_ids_BT: Tensor, loss_weights_BT: Tensor
) -> Tensor:
    """Sum over each sequence of weight times next-token cross-entropy; fp32 [B].

    A weight of zero leaves a position out altogether, so that what stands there, even NaN, plays
    no part. fp32 whatever the logits' type; float64 stays float64.
    """
    kept_BT = loss_weights_BT[:, 1:] != 0
    rows_N = kept_BT.nonzero()[:, 0]
    weighted_N = _weighted(logits_BTV, input_ids_BT, loss_weights_BT, kept_BT)
    return weighted_N.new_zeros(len(input_ids_BT)).index_add(0, rows_N, weighted_N)


def _weighted(
    logits_BTV: Tensor, input_ids_BT: Tensor, loss_weights_BT: Tensor, kept_BT: Tensor
) -> Tensor:
    """Weight times cross-entropy at the positions before those that are kept, [N]."""
    logits_NV = logits_BTV[:, :-1][kept_BT]
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    nll_N = F.cross_entropy(logits_NV, input_ids_BT[:, 1:][kept_BT], reduction="none")
    return nll_N * loss_weights_BT[:, 1:][kept_BT]
