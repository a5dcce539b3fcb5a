"""How long a plan will take: two microbatches of public random tokens, timed and scaled up."""

from __future__ import annotations

import time

import torch
from torch import nn

from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training.plan import TrainingPlan


def estimate_seconds(
    loss: nn.Module,
    plan: TrainingPlan,
    *,
    vocabulary: int,
    tokens_per_unit: float,
    microbatch_tokens: int,
    device: torch.device,
) -> float:
    """Expected duration of the steps of `plan`, data preparation and saving not included.

    Args:
        tokens_per_unit: mean over units, all records of a unit together.
    """
    width = max(2, min(plan.max_tokens, round(tokens_per_unit)))
    sequences = max(1, min(32, microbatch_tokens // width))
    batch = _random_batch(vocabulary, sequences, width, device)
    per_example_gradients(loss, batch)
    start = time.perf_counter()
    per_example_gradients(loss, batch)
    seconds_per_token = (time.perf_counter() - start) / (sequences * width)
    return seconds_per_token * tokens_per_unit * plan.batch_size * plan.steps


def _random_batch(vocabulary: int, sequences: int, width: int, device: torch.device) -> UnitBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (sequences, width), generator=generator)
    weights = torch.full((sequences, width), 1.0 / width)
    return UnitBatch(ids, weights, torch.arange(sequences), sequences).to(device)
