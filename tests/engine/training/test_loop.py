"""What ends a run, and what is never done about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taciturn.engine.training import loop
from taciturn.wire.events import FailureCode
from taciturn.worker.failures import failure_code


def test_a_gpu_without_memory_ends_the_run_and_says_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Smaller microbatches from there on would show who was drawn."""
    tries: list[object] = []

    def full(run: object, state: object, *, resume: bool) -> None:
        tries.append(run)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "_state", lambda run: None)
    monkeypatch.setattr(loop, "_train", full)
    run: Any = SimpleNamespace(plan=SimpleNamespace(privacy=None))
    with pytest.raises(torch.OutOfMemoryError, match=r"--resume and a smaller microbatch_tokens"):
        loop.train(run, resume=False)
    assert len(tries) == 1
    assert failure_code(torch.OutOfMemoryError("full")) is FailureCode.RESOURCES
