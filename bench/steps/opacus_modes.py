"""Opacus as its documentation says: `PrivacyEngine.make_private` with "hooks" or "ghost".

What it needs here: a model in training mode whose embedding is not tied to its head (ghost), the
loss as a mean over sequences, and for ghost the criterion that `make_private` returns, told the
shape of the logits. `poisson_sampling=False`, so that the batches are those of the other variants.
LlamaRMSNorm has no rule of its own there; Opacus falls back to functorch for it. Its noise comes
from torch's ordinary generator, which is cheaper than a cipher and not secure: secure mode needs
another package, torchcsprng.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steps.variants import Gauge, Task, adamw, mean_loss, split
from steps.workload import IGNORED, Batch

Mode = Literal["hooks", "ghost"]

UNIT_OF_SEVERAL = "not expressible: Opacus' privacy unit is one row of the batch"


class _Opacus:
    mode: Mode

    def __init__(self, model: nn.Module, task: Task) -> None:
        if task.unit_size > 1:
            raise NotImplementedError(UNIT_OF_SEVERAL)
        self.model = model
        self._microbatch = task.microbatch
        self._parts: dict[int, list[Batch]] = {}
        with warnings.catch_warnings():
            # It says that its random numbers are not secure; so does the report.
            warnings.simplefilter("ignore")
            self._module, self._optimizer, *rest = self._make_private(model, task)
        self._criterion = rest[0]

    def _make_private(self, model: nn.Module, task: Task) -> Any:
        n_sequences = len(task.workload.batches) * task.workload.sequences
        rows = TensorDataset(torch.arange(n_sequences))
        return PrivacyEngine().make_private(
            module=model,
            optimizer=adamw(model),
            criterion=nn.CrossEntropyLoss(ignore_index=IGNORED),
            data_loader=DataLoader(rows, batch_size=task.workload.sequences),
            noise_multiplier=task.noise_multiplier,
            max_grad_norm=task.l2_clip_norm,
            poisson_sampling=False,
            grad_sample_mode=self.mode,
        )

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        with warnings.catch_warnings(), gauge:
            # Full backward hooks on layers whose input needs no gradient.
            warnings.simplefilter("ignore")
            for batch in batches:
                self._step(batch)

    def _step(self, batch: Batch) -> None:
        parts = split(batch, self._microbatch, self._parts)
        for number, part in enumerate(parts):
            if len(parts) > 1:
                # As its BatchMemoryManager does: clipped sums add up until the last one.
                self._optimizer.signal_skip_step(do_skip=number + 1 < len(parts))
            self._loss(
                self._module(input_ids=part.input_ids_BT, use_cache=False).logits, part
            ).backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _loss(self, logits_BTV: torch.Tensor, batch: Batch) -> Any:
        raise NotImplementedError


class OpacusHooks(_Opacus):
    """Per-sample gradients by hooks on layers, kept until they are clipped."""

    mode: Mode = "hooks"

    def _loss(self, logits_BTV: torch.Tensor, batch: Batch) -> Any:
        return mean_loss(logits_BTV, batch)


class OpacusGhost(_Opacus):
    """Per-sample norms by the Gram trick, then a second backward pass on the scaled losses."""

    mode: Mode = "ghost"

    def _loss(self, logits_BTV: torch.Tensor, batch: Batch) -> Any:
        return self._criterion(
            logits_BTV.flatten(0, 1), batch.next_ids_BT.flatten(), shape=logits_BTV.shape
        )
