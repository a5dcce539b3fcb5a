"""Floating-point operations of one step, by torch's FlopCounterMode.

It counts matrix products, convolutions and attention. torch has formulas for attention on a GPU
only; the CPU's kernel is given the same ones here, so that attention counts in every variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from steps.variants import Variant
from steps.workload import Batch

_ATEN = torch.ops.aten


def count(variant: Variant, block: Sequence[Batch]) -> int:
    """Operations of one step on each batch of `block`."""
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _WholeModel()
    variant.run(block, counter)
    return int(counter.get_total_flops())


class _WholeModel(ModuleTracker):
    """Tells modules apart by hooks that `autograd.grad`, which ours uses, does not allow: off."""

    def __enter__(self) -> _WholeModel:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def _matrix_vector(matrix: Any, vector: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return 2 * int(matrix[0]) * int(matrix[1])


_FORMULAS: dict[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _ATEN.mv: _matrix_vector,
}
