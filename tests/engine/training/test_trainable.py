"""The check before a run, on devices that lack memory or kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.training import trainable
from taciturn.spec import FitSpec

SPEC = FitSpec(target_epsilon=3, delta=1e-5, max_tokens=32)


def verified(patch: pytest.MonkeyPatch, *failures: Exception | None, free: int | None) -> list[Any]:
    """Whether each try asked half precision in fp32; each ends in the next of the failures."""
    tries: list[bool] = []

    def verify(loss: object, short: object, longest: object, *, exactly: bool) -> None:
        tries.append(exactly)
        failure = failures[len(tries) - 1]
        if failure is not None:
            raise failure

    patch.setattr(trainable, "verify", verify)
    patch.setattr(trainable, "available_bytes", lambda device: free)
    model = build("llama").to(torch.bfloat16)
    loss = CausalLmLoss(with_lora(model))
    trainable._verify(loss, LoadedModel("llama", model, None, context_length=64), SPEC)
    return tries


FULL = torch.OutOfMemoryError("CUDA out of memory")


def test_fp32_is_asked_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(monkeypatch, None, free=None) == [True]
    assert verified(monkeypatch, None, free=VOCABULARY) == [False]


def test_where_it_turns_out_to_lack_half_precision_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Public batches alone take the memory: it depends on no row."""
    assert verified(monkeypatch, FULL, None, free=None) == [True, False]
    with pytest.raises(torch.OutOfMemoryError):
        verified(monkeypatch, FULL, FULL, free=None)
    with pytest.raises(torch.OutOfMemoryError):
        verified(monkeypatch, FULL, None, free=VOCABULARY)


def test_other_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        verified(monkeypatch, RuntimeError("shapes differ"), None, free=None)
