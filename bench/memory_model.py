"""Is the memory that `taciturn plan` announces the memory that a run takes?

    python bench/memory_model.py

For several methods and microbatches: the estimate (optimiser, sums, largest microbatch), and the
peak that the operating system measures over two training steps, each in a process of its own; once
with an allocator that gives freed blocks back, once with the one that training uses, whose heap
keeps them and is fragmented. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from taciturn.data.tokens.store import TokenizedRecord
from taciturn.engine.model.lora import attach
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.training.batch import widths
from taciturn.engine.training.estimate import Workload, estimate_memory
from taciturn.engine.training.loop import batch_limits
from taciturn.engine.training.memory import random_batch
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, private_step
from taciturn.malloc import keep_freed_memory
from taciturn.planning.optimizer import OptimizerConfig
from taciturn.planning.plan import AdapterPlan, PrivacyPlan, TrainingPlan

VOCABULARY = 6144
CASES = [
    (method, tokens, units)
    for method in ("lora", "full")
    for tokens, units in ((64, 32), (256, 8), (1024, 2))
]


class Records:
    """Units of one random record each."""

    def __init__(self, units: int, tokens: int) -> None:
        self.n_units, self.targets = units, np.arange(tokens) > 0
        generator = np.random.default_rng(0)
        self.ids = generator.integers(VOCABULARY, size=(units, tokens), dtype=np.int32)

    def records(self, unit: int) -> list[TokenizedRecord]:
        """What a step asks for."""
        return [TokenizedRecord(self.ids[unit], self.targets)]

    def lengths(self, unit: int) -> list[int]:
        """What a step asks for, to deal units to processes."""
        return [len(self.ids[unit])]


class Everybody(DpSgdMechanism):
    """Draws all units, so that every step is the largest."""

    def sample(self, stream: SecureStream, n_present: int) -> NDArray[np.int64]:
        """All units."""
        return np.arange(self.n_units, dtype=np.int64)


def model_of(method: str) -> nn.Module:
    """A Llama of 8 layers, hidden 512."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    rank = 8 if method == "lora" else None
    plan = AdapterPlan(method=method, r=rank, alpha=rank)  # type: ignore[arg-type]
    return attach(LlamaForCausalLM(config), plan)


def plan_of(tokens: int, units: int) -> TrainingPlan:
    """A private fit whose microbatches have room for `units` records of `tokens` tokens."""
    return TrainingPlan.model_construct(
        batch_size=2 * units * len(widths(tokens)),
        privacy=PrivacyPlan(epsilon=1, delta=1e-5, noise_multiplier=1, l2_clip_norm=1),
        max_tokens=tokens,
    )


def announced(method: str, tokens: int, units: int) -> int:
    """Bytes beside the weights, as `taciturn plan` estimates them."""
    plan = plan_of(tokens, units)
    work = Workload(tokens, tokens * units, VOCABULARY, Form.AUTO)
    loss = CausalLmLoss(model_of(method))
    estimate = estimate_memory(loss, plan, work, torch.device("cpu"))
    return estimate.state + estimate.microbatch


def measured(method: str, tokens: int, units: int) -> int:
    """Bytes by which the process grows over two steps, at its peak."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        keep_freed_memory()
    loss = CausalLmLoss(model_of(method))
    parameters = trainable_parameters(loss)
    # Two microbatches, as a step has several: the sum of the first is there beside the second.
    everybody = 2 * units
    mechanism = Everybody(everybody, everybody, 2, 1.0, 1.0, tuple(parameters))
    limits = batch_limits(plan_of(tokens, units), loss, tokens * units, ALONE)
    data = Records(everybody, tokens)
    # Libraries are mapped when they are first used, and are no part of the estimate.
    per_example_gradients(loss, random_batch(VOCABULARY, 2, 16, torch.device("cpu")))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    state = TrainingState(parameters, OptimizerConfig(1e-4, 2), private=True)
    for _ in range(2):
        private_step(loss, data, mechanism, state, Streams.fresh(), limits)  # type: ignore[arg-type]
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _alone(function: str, case: tuple[str, int, int], **allocator: str) -> int:
    command = [sys.executable, __file__, function, *map(str, case)]
    variables = {**os.environ, **allocator}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout
    return int(out.split()[-1])


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("alone", nargs="*", help="(for the processes that this starts)")
    alone = parser.parse_args().alone
    if alone:
        function = {"announced": announced, "measured": measured}[alone[0]]
        print(function(alone[1], int(alone[2]), int(alone[3])))
        return
    print(
        "| method | tokens x units | announced MB | measured MB | announced / measured | kept MB |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        said, kept = _alone("announced", case), _alone("measured", case)
        took = _alone("measured", case, MALLOC_MMAP_THRESHOLD_="1048576")
        print(
            f"| {case[0]} | {case[1]} x {case[2]} | {said / 1e6:.0f} | {took / 1e6:.0f} | "
            f"{said / took:.2f} | {kept / 1e6:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
