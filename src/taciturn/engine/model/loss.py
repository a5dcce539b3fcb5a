"""The loss, owned by the engine: each record is judged by its own tokens and nothing else.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from taciturn.engine.model.compiled import has_compiled_parts
from taciturn.engine.model.output import gives_own_logits, model_logits, output_terms
from taciturn.engine.model.positions import takes_positions
from taciturn.engine.model.rope import independent_length
from taciturn.engine.model.sharding import is_sharded
from taciturn.engine.privacy.head import head_cross_entropy
from taciturn.engine.privacy.types import UnitBatch
from taciturn.errors import GuaranteeError


class CausalLmLoss(nn.Module):
    """Per-sequence weighted cross-entropy of a Hugging Face causal LM.

    forward(batch) -> [B], fp32: sum over t of loss_weights[t] * -log p(token t | tokens before t).
    The weights come with the batch and are one over the record's own number of targets, never over
    the batch's.

    Attributes:
        max_tokens: longest T at which the records of a batch stay independent; None: any.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.max_tokens = independent_length(model)
        self._fused = gives_own_logits(model)

    def forward(self, batch: UnitBatch) -> Tensor:
        terms = self.terms(batch)
        if terms is not None:
            return head_cross_entropy(terms, batch.input_ids_BT, batch.loss_weights_BT)
        return weighted_cross_entropy(self.logits(batch), batch.input_ids_BT, batch.loss_weights_BT)

    def terms(self, batch: UnitBatch) -> list[tuple[Tensor, Tensor]] | None:
        """Terms that add up to the logits (`output_terms`); None where only the model can make
        them."""
        self.check_length(batch.input_ids_BT.shape[1])
        if not self._fused:
            return None
        return output_terms(self.model, batch.input_ids_BT, batch.positions_BT)

    def logits(self, batch: UnitBatch) -> Tensor:
        """Logits [B, T, V].

        Raises:
            GuaranteeError: records would not be independent.
        """
        self.check_length(batch.input_ids_BT.shape[1])
        # Right padding under a causal mask: no real token can see a padded one, so no attention
        # mask is needed, and the logits of padded positions carry weight zero.
        return model_logits(self.model, batch.input_ids_BT, batch.positions_BT)

    def check_length(self, tokens: int) -> None:
        """Raise GuaranteeError if records of a batch of so many tokens would not be independent."""
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise GuaranteeError(
                f"a batch of {tokens} tokens is longer than {self.max_tokens}, from where this "
                "model's rotary embedding depends on the longest record of the batch; "
                f"set max_tokens={self.max_tokens}"
            )


def can_pack(loss: nn.Module) -> bool:
    """True if a loss is that of texts whose model may be told that rows hold several of them."""
    if type(loss) is not CausalLmLoss:  # a pair of answers is two sequences already
        return False
    model: Any = loss.model
    body = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
    return takes_positions(body) and not is_sharded(model) and not has_compiled_parts(model)


def weighted_cross_entropy(
    logits_BTV: Tensor, input_ids_BT: Tensor, loss_weights_BT: Tensor
) -> Tensor:
    """Sum over each sequence of weight times next-token cross-entropy; fp32 [B].

    A position of weight zero plays no part, whatever stands there, even NaN. All positions are
    computed: which of them count is private and must not change a shape. fp32 whatever the logits'
    type; float64 stays float64.
    """
    weights_BT = loss_weights_BT[:, 1:]
    logits_BTV = logits_BTV[:, :-1].masked_fill((weights_BT == 0).unsqueeze(-1), 0.0)
    if logits_BTV.dtype != torch.float64:
        logits_BTV = logits_BTV.float()
    nll_N = F.cross_entropy(
        logits_BTV.flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction="none"
    )
    return (nll_N.view(weights_BT.shape) * weights_BT).sum(1)
