"""Longest batch before its padded length changes what each sequence computes."""

from __future__ import annotations

from typing import Any

from torch import nn


def independent_length(model: nn.Module) -> int | None:
    """Longest padded length up to which a sequence's loss depends on that sequence alone.

    "dynamic" and "longrope" rotary embeddings choose their frequencies by the longest sequence of
    the batch: beyond the length they were made for, one long record would change the loss and the
    gradient of every record padded beside it, and sensitivity would no longer be bounded.

    Returns:
        The bound in tokens, or None if there is none.
    """
    bounds = [bound for module in model.modules() for bound in _bounds(module)]
    return min(bounds, default=None)


def _bounds(module: Any) -> list[int]:
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        return _bound(module, kinds, module.config.rope_parameters)
    if isinstance(kinds, dict):
        parameters = module.config.rope_parameters
        return [x for layer, kind in kinds.items() for x in _bound(module, kind, parameters[layer])]
    return []


def _bound(module: Any, kind: str, parameters: dict[str, Any]) -> list[int]:
    if kind == "longrope":
        return [int(parameters["original_max_position_embeddings"])]
    if "dynamic" in kind:
        return [int(module.original_max_seq_len)]
    return []
