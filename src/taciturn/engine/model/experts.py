"""Mixture-of-experts layers whose per-unit gradients are exact.

Transformers keeps all experts of a layer in one 3-D parameter and computes them through an
implementation chosen by name. The one registered here routes each row's gradient back to the
sequence that the row came from; for plain parameters it computes what "eager" computes, bit for
bit.

Shapes: N rows (B*T), K experts per row, E experts, R rows of one expert, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from taciturn.engine.privacy.lifted import routed_linear

IMPLEMENTATION = "taciturn_exact"


def exact_experts(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """sum over k of weight[n, k] * expert[index[n, k]](x[n]), gated experts without bias.

    Args:
        self: the experts module; holds gate_up_proj [E, 2F, D] and down_proj [E, D, F].
        hidden_states: [N, D].
        top_k_index: [N, K].
        top_k_weights: [N, K].
    """
    out_ND = torch.zeros_like(hidden_states)
    gate_up, down = self.gate_up_proj.unbind(), self.down_proj.unbind()
    for expert in _hit(top_k_index, self.num_experts):
        # By k, then by token: the order of eager, which fixes the rounding of the products.
        k_of_R, token_of_R = torch.where((top_k_index == expert).T)
        x_RD = hidden_states[token_of_R]
        x_RF = self._apply_gate(routed_linear(x_RD, gate_up[expert], token_of_R))
        y_RD = routed_linear(x_RF, down[expert], token_of_R)
        y_RD = y_RD * top_k_weights[token_of_R, k_of_R, None]
        out_ND.index_add_(0, token_of_R, y_RD.to(out_ND.dtype))
    return out_ND


def use_exact_experts(model: nn.Module) -> None:
    """Switch every fused-experts layer that `exact_experts` can compute to it.

    Layers of another make (transposed weights, biases, norms after the experts) keep theirs; if
    one is to be trained, the kernel refuses its parameters by name.
    """
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, exact_experts)
    # The configuration is shared by the layers of one model; setting it twice is harmless.
    configs: list[Any] = [module.config for module in model.modules() if _is_standard(module)]
    for config in configs:
        config._experts_implementation = IMPLEMENTATION


def _hit(top_k_index: Tensor, num_experts: int) -> list[int]:
    # Ascending, as in eager; an index of num_experts marks a row that goes nowhere.
    return [expert for expert in top_k_index.unique().tolist() if expert < num_experts]


def _is_standard(module: Any) -> bool:
    if not isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
        return False
    flags = ("is_transposed", "has_bias", "has_post_expert_norm", "_is_expert_parallel")
    return bool(
        getattr(module, "has_gate", False)
        and not any(getattr(module, flag, True) for flag in flags)
        and isinstance(getattr(module, "down_proj", None), nn.Parameter)
    )
