"""Whether a model computes records in packed rows as it computes them alone: tried, not assumed.

Models with rotary or learned positions do, since transformers makes their masks from position ids
that start again. Those with ALiBi, with states that run through a row, or with positions of their
own making don't, and are given padded rows.
"""

from __future__ import annotations

from typing import Any

import torch

from taciturn.engine.model.output import model_logits
from taciturn.engine.model.rope import independent_length
from taciturn.engine.model.sharding import is_sharded
from taciturn.engine.privacy.verification import packed_public_batch

# What models raise that take no position ids, or not those of several rows.
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)


@torch.no_grad()
def apart_in_rows(model: Any) -> bool:
    """Whether logits of packed random public tokens are those of the same records padded."""
    # Sharded, a trial would wait for the other processes. And where the longest sequence decides
    # on frequencies, it must not be a row's length that does.
    if is_sharded(model) or independent_length(model) is not None:
        return False
    table = model.get_input_embeddings().weight
    batch = packed_public_batch(int(table.shape[0])).to(table.device)
    packing = batch.packing
    assert packing is not None
    padded_BTV = model_logits(model, batch.input_ids_BT)
    try:
        packed_RLV = model_logits(model, packing.input_ids_RL, packing.position_ids_RL)
    except _REFUSALS:
        return False
    packed_NV = packed_RLV.flatten(0, 1).float()
    tolerance = 1e-5 if padded_BTV.dtype == torch.float32 == table.dtype else 2e-2
    for record, (start, length) in enumerate(zip(packing.starts, packing.lengths, strict=True)):
        own = padded_BTV[record, :length].float()
        if not bool((packed_NV[start : start + length] - own).norm() <= tolerance * own.norm()):
            return False
    return True
