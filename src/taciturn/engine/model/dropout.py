"""Switch off randomness in the forward pass, so that a loss is a function of its record alone.

Gradient checkpointing needs train mode; train mode turns dropout on. DP-SGD has noise enough of its
own, and a gradient that cannot be computed twice cannot be checked.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# attention_dropout, attn_pdrop, dropout_rate, layerdrop, drop_path, router_jitter_noise ...
_RANDOM = re.compile(r"drop|jitter")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout, layer-drop and router-jitter rate of `model` to zero, in place.

    Rates live in nn.Dropout modules, in float attributes of other modules, and in the
    configuration, which some layers read at every call; all three are set.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _zero_rates(module)
        _zero_rates(getattr(module, "config", None))


def _zero_rates(owner: Any) -> None:
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        rate = isinstance(value, int | float) and not isinstance(value, bool)
        if rate and value != 0 and _RANDOM.search(name):
            setattr(owner, name, type(value)(0))  # configurations check the type
