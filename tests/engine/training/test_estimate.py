"""Time of a run, from microbatches of public tokens."""

from __future__ import annotations

import pytest
import torch

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training import estimate, loop
from taciturn.engine.training.estimate import (
    Workload,
    estimate_seconds,
    measured_seconds_per_unit,
)
from taciturn.planning.plan import PrivacyPlan, TrainingPlan

WORK = Workload(64, 1024, VOCABULARY, Form.AUTO)
PLAN = TrainingPlan.model_construct(
    batch_size=320,
    steps=10,
    privacy=PrivacyPlan(epsilon=1, delta=1e-5, noise_multiplier=1, l2_clip_norm=1),
    max_tokens=128,
)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[UnitBatch]:
    """Microbatches that were timed; each takes a second."""
    timed: list[UnitBatch] = []

    def second(loss: object, batch: UnitBatch, form: Form, *, private: bool) -> float:
        timed.append(batch)
        return 1.0

    monkeypatch.setattr(estimate, "_seconds", second)
    return timed


def launching(patch: pytest.MonkeyPatch, tokens: int) -> None:
    for module in (estimate, loop):
        patch.setattr(module, "free_tokens", lambda loss: tokens)


def test_on_a_cpu_time_grows_with_tokens(batches: list[UnitBatch]) -> None:
    loss = CausalLmLoss(with_lora(build("llama")))
    assert estimate_seconds(loss, PLAN, WORK) == pytest.approx(10 * 320 / batches[0].n_units)
    assert measured_seconds_per_unit(loss, 128, WORK) == pytest.approx(1 / batches[1].n_units)
    assert [batch.input_ids_BT.shape for batch in batches] == [(12, 64), (16, 64)]


def test_on_a_gpu_each_length_has_a_microbatch_that_is_not_full(
    batches: list[UnitBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many units are in it, it takes what starting its kernels takes."""
    launching(monkeypatch, 100_000)
    loss = CausalLmLoss(with_lora(build("llama")))
    # 16, 32, 64 and 128 tokens: two microbatches' time for the rests, 20 full ones a step.
    assert estimate_seconds(loss, PLAN, WORK) == pytest.approx(10 * (320 / 16 + 2))
    assert measured_seconds_per_unit(loss, 128, WORK) == pytest.approx((256 / 16 + 2) / 256)
    assert [batch.input_ids_BT.shape for batch in batches] == [(16, 64)] * 2


@pytest.mark.parametrize("private", [True, False])
def test_a_microbatch_is_timed_whole(private: bool) -> None:
    loss = CausalLmLoss(with_lora(build("llama")))
    batch = estimate.random_batch(VOCABULARY, 4, 16, torch.device("cpu"))
    assert 0 < estimate._seconds(loss, batch, Form.AUTO, private=private) < 10
