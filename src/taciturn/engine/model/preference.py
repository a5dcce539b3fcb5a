"""The loss of direct preference optimisation (Rafailov et al. 2023), of pairs in one record each.

    -log sigmoid(beta * (log p(chosen) - log q(chosen) - log p(rejected) + log q(rejected)))

p is the model, q the base that its adapters are on, both given the prompt: sums over an answer's
tokens, not means. beta * (log p - log q) is an answer's implicit reward. A pair is one row of a
batch (`data/tokens/pairs.py`), so that its loss depends on no other row, as every loss here.

Shapes: B pairs, T tokens of a pair's row, which are those of its two sequences in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.types import UnitBatch
from taciturn.errors import ModelError


class PreferenceLoss(CausalLmLoss):
    """Loss of each pair, from a model with adapters; forward(batch) -> [B], fp32.

    A pair without any target has loss and gradient zero.

    Attributes:
        beta: how closely the model is held to its base.
    """

    def __init__(self, model: nn.Module, beta: float) -> None:
        super().__init__(model)
        self.beta = beta
        self._adapters = tuple(_adapters(model))
        if not self._adapters:
            raise ModelError(
                'objective="dpo" compares with the base, which a model is with its adapters off, '
                "and this one has none; fit it with method='lora'"
            )

    def forward(self, batch: UnitBatch) -> Tensor:
        losses_B = -F.logsigmoid(self.beta * self.margins(batch))
        no_target_B = ~(batch.loss_weights_BT > 0).any(1)
        return losses_B.masked_fill(no_target_B, 0.0)

    def margins(self, batch: UnitBatch) -> Tensor:
        """Implicit reward of the chosen answer minus that of the rejected one, over beta; [B]."""
        winners, losers = sequences(batch)
        # In the same shapes as below: there, what rounds rounds alike.
        with torch.no_grad(), self.base():
            of_base_B = self.nats(losers) - self.nats(winners)
        return self.nats(losers) - self.nats(winners) - of_base_B

    def nats(self, batch: UnitBatch) -> Tensor:
        """Minus the log-probability of each sequence's targets, summed; [B]."""
        return super().forward(batch)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Adapters off. PEFT's own switch would also set which parameters are trained."""
        for adapter in self._adapters:
            adapter._disable_adapters = True
        try:
            yield
        finally:
            for adapter in self._adapters:
                adapter._disable_adapters = False


def sequences(batch: UnitBatch) -> tuple[UnitBatch, UnitBatch]:
    """The chosen and the rejected sequences of a batch of pairs; every target weighs one."""
    ids_BT, weights_BT = batch.input_ids_BT, (batch.loss_weights_BT > 0).float()
    if ids_BT.shape[1] % 2:
        ids_BT, weights_BT = F.pad(ids_BT, (0, 1)), F.pad(weights_BT, (0, 1))
    winners, losers = (
        UnitBatch(
            ids_BT[:, side::2].contiguous(),
            weights_BT[:, side::2].contiguous(),
            batch.unit_of_B,
            batch.n_units,
        )
        for side in (0, 1)
    )
    return winners, losers


def _adapters(model: nn.Module) -> Iterator[BaseTunerLayer]:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            if module.disable_adapters:
                raise ModelError("the model's adapters are switched off; switch them on")
            yield module
