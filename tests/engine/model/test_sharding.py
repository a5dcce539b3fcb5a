"""Sharded models give the per-unit gradients of whole ones, whatever their architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support.ranks import in_processes, results
from support.tiny_models import CONFIGS, build, random_batch
from taciturn.engine.model import sharding
from taciturn.engine.model.load import choose_device, enable_checkpointing, prepare
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.training.processes import all_processes
from taciturn.errors import SpecError, UnsupportedLayerError
from taciturn.spec import PerformanceSpec

CPU = torch.device("cpu")


Passes = list[tuple[bool, Form]]
"""Of each: whether it is a first one, with the loss of the whole model; the gradients' form."""
IN_TURN: Passes = [(True, Form.FACTORS), (False, Form.INSTANTIATE)]
ALL: Passes = [(first, form) for first in (True, False) for form in Form if form is not Form.AUTO]


def largest_error(
    names: list[str], checkpointed: list[str], passes: Passes
) -> list[tuple[str, float, float]]:
    """For each model: how far gradients are off, relative, and the share of bytes held here.

    Args:
        checkpointed: names of which the same is seen with activations recomputed.
    """
    out, kept = [], set[str]()
    batch = random_batch([7, 4, 11, 5], [0, 1, 1, 2])
    with all_processes(CPU) as ranks:
        for name in names:
            for checkpointing in (False, True)[: 1 + (name in checkpointed)]:
                whole: Any = build(name)
                prepare(whole)
                whole.requires_grad_(True)
                # Its output layer is taken apart while the model is whole.
                loss = CausalLmLoss(whole)
                expected = per_example_gradients(loss, batch).dense()
                held = sharding.own_bytes(whole)
                sharding.shard(whole, CPU, ranks.size)
                if checkpointing and whole.supports_gradient_checkpointing:
                    enable_checkpointing(whole)
                error = 0.0
                for first, form in passes:
                    # A second pass finds what the first left.
                    each_loss = loss if first else CausalLmLoss(whole)
                    gradients = per_example_gradients(each_loss, batch, form)
                    kept |= {type(value).__name__ for value in gradients.values.values()}
                    error = max(error, _error(gradients.dense(), expected))
                out.append((name, error, sharding.own_bytes(whole) / held))
    assert "FactoredGradients" in kept, "of no sharded model were factors kept"
    return out


def _error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        float((actual[each] - value).norm() / (1e-3 + value.norm()))
        for each, value in expected.items()
    )


@pytest.mark.parametrize(
    ("checkpointed", "passes"),
    [
        (["gpt2", "llama", "mixtral"], IN_TURN),
        pytest.param(sorted(CONFIGS), ALL, marks=pytest.mark.slow),
    ],
    ids=["some checkpointed", "all checkpointed"],
)
def test_gradients_of_whole_models(checkpointed: list[str], passes: Passes) -> None:
    asked = (sorted(CONFIGS), checkpointed, passes)
    for rows in results(in_processes(2, largest_error, *asked, timeout_s=850)):
        for name, error, share in rows:
            assert error < 1e-4, f"{name}: off by {error:.1e}"
            assert share < 0.52, f"{name}: {share:.0%} of the weights on one of two ranks"


def test_changed_gradients_are_refused() -> None:
    norms = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    sharding.check_sharded(norms, norms * 1.001)
    with pytest.raises(UnsupportedLayerError, match="when it is sharded"):
        sharding.check_sharded(norms, norms * torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(UnsupportedLayerError):
        sharding.check_sharded(norms, norms * float("nan"))


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(PerformanceSpec()) == torch.device("cuda", 1)
    assert choose_device(PerformanceSpec(device="cuda")) == torch.device("cuda", 1)
    assert choose_device(PerformanceSpec(device="cpu")) == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SpecError, match="there are 2"):
        choose_device(PerformanceSpec())
    monkeypatch.delenv("LOCAL_RANK")
    assert choose_device(PerformanceSpec()) == torch.device("cuda")
