"""The gateway's estimate of memory against the engine's count of the very tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from taciturn.engine.model.load import enable_checkpointing
from taciturn.engine.model.lora import attach
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.training.estimate import Workload, estimate_memory
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.memory import Proportions, memory_need, trained_parameters
from taciturn.planning.plan import AdapterPlan, TrainingPlan, make_plan
from taciturn.spec import FitSpec

TOKENS = 128


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=4096,
        n_embd=256,
        n_layer=4,
        n_head=8,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def plan_of(spec: FitSpec, parameters: int) -> TrainingPlan:
    return make_plan(spec, PublicFacts(10_000, "base", parameters, 512))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_is_not_too_low_and_not_much_too_high(make: object, method: str, again: bool) -> None:
    """A machine of a size too large costs money; one that is too small costs the job."""
    model = make()  # type: ignore[operator]
    parameters = sum(value.numel() for value in model.parameters())
    spec = FitSpec(
        target_epsilon=3,
        delta=1e-5,
        method=method,
        max_tokens=TOKENS,
        microbatch_tokens=1024,
        gradient_checkpointing=again,
    )
    plan = plan_of(spec, parameters)
    loss = CausalLmLoss(attach(model, plan.adapter))
    if again:
        enable_checkpointing(loss.model)
    work = Workload(TOKENS, 1024, 4096, Form.AUTO)
    counted = estimate_memory(loss, plan, work, torch.device("cpu"))
    guessed = memory_need(parameters, 4096, plan, spec, on_gpu=False)
    print(f"{method}: {guessed.on(1) / counted.total:.2f} times what the engine counts")
    assert counted.total <= guessed.on(1) <= 4 * counted.total


@pytest.mark.parametrize(
    ("parameters", "vocabulary", "width", "layers"),
    [
        (124_000_000, 50_257, 768, 12),
        (1_236_000_000, 128_256, 2048, 16),
        (6_738_000_000, 32_000, 4096, 32),
        (70_000_000_000, 32_000, 8192, 80),
    ],
)
def test_known_architectures(parameters: int, vocabulary: int, width: int, layers: int) -> None:
    shape = Proportions.of(parameters, vocabulary)
    assert shape.width == pytest.approx(width, rel=0.3)
    assert shape.layers == pytest.approx(layers, rel=0.5)


def test_trained_parameters_of_a_known_adapter() -> None:
    """Llama 2 7B with r=8 on all matrices: 19,988,480 by peft."""
    adapter = AdapterPlan(method="lora", r=8)
    assert trained_parameters(6_738_000_000, 32_000, adapter) == pytest.approx(2e7, rel=0.15)


def test_7b_in_4_bits_fits_into_24_gb() -> None:
    """Llama 2 7B: hidden 4096, 32 layers, MLP 11,008, vocabulary 32,000; LoRA, 512 tokens."""
    spec = FitSpec(
        target_epsilon=3, delta=1e-5, method="lora", r=16, quantization="nf4", max_tokens=512
    )
    need = memory_need(6_738_000_000, 32_000, plan_of(spec, 6_738_000_000), spec, on_gpu=True)
    print(f"{need.on(1) / 1e9:.1f} GB: {need}")
    assert need.on(1) < 0.9 * 24e9
    without = spec.model_copy(update={"gradient_checkpointing": False})
    more = memory_need(6_738_000_000, 32_000, plan_of(spec, 6_738_000_000), without, on_gpu=True)
    assert more.on(1) > 24e9


@given(st.integers(1_000_000, 10**11), st.integers(2, 8))
def test_more_processes_never_need_more_each(parameters: int, processes: int) -> None:
    spec = FitSpec(target_epsilon=3, delta=1e-5, method="full")
    need = memory_need(parameters, 32_000, plan_of_once(spec), spec, on_gpu=True)
    assert need.on(processes) < need.on(1)


def plan_of_once(spec: FitSpec, made: dict[str, TrainingPlan] = {}) -> TrainingPlan:  # noqa: B006
    if "plan" not in made:
        made["plan"] = plan_of(spec, 10**9)
    return made["plan"]
