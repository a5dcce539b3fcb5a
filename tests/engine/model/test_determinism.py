"""Kernels without atomic sums, where a GPU has them; settings that are given back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from support.tiny_models import VOCABULARY
from taciturn.engine.model import determinism
from taciturn.engine.model.determinism import (
    computed,
    deterministic_kernels,
    fix_workspace,
    lacks_kernel,
    wish_for_kernels,
)
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.training.memory import random_batch

MEMORY: Any = torch.utils.deterministic
GPU, CPU = torch.device("cuda"), torch.device("cpu")
Settings = tuple[bool, ...]


def settings() -> Settings:
    kernels = torch.backends.cuda
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        MEMORY.fill_uninitialized_memory,
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.cudnn_sdp_enabled(),
        kernels.math_sdp_enabled(),
    )


ORDINARY = (False, False, True, True, True, True, True)
DEMANDED = (True, False, False, True, True, False, True)
WISHED = (True, True, False, False, False, False, True)


@pytest.fixture(autouse=True)
def ordinary_again() -> Iterator[None]:
    assert settings() == ORDINARY
    yield
    assert settings() == ORDINARY


@pytest.fixture
def cublas(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A GPU whose products have a fixed workspace, or not."""
    monkeypatch.setattr(determinism, "_cublas_is_fixed", lambda device: request.param)


def test_nothing_is_set_for_a_cpu() -> None:
    with deterministic_kernels(CPU):
        assert settings() == ORDINARY


@pytest.mark.parametrize("cublas", [True], indirect=True)
def test_attention_is_deterministic_only_where_that_is_demanded(cublas: None) -> None:
    """FlashAttention sums by atomic operations under warn_only: the wish is not enough."""
    with deterministic_kernels(GPU):
        assert settings() == DEMANDED
        with deterministic_kernels(GPU):
            assert settings() == DEMANDED
        assert settings() == DEMANDED


@pytest.mark.parametrize("cublas", [True], indirect=True)
def test_what_has_no_deterministic_kernel_is_left_to_the_verification(cublas: None) -> None:
    with deterministic_kernels(GPU):
        wish_for_kernels()
        assert settings() == WISHED
        with deterministic_kernels(GPU):
            assert settings() == WISHED


class Kernels:
    """An operation that has no deterministic kernel, or is wrong."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.settings: list[Settings] = []

    def compute(self) -> str:
        self.settings.append(settings())
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise self.error
        return "done"


LACKING = RuntimeError("put_ does not have a deterministic implementation, but you set ...")


@pytest.mark.parametrize("cublas", [True], indirect=True)
def test_what_lacks_a_kernel_is_computed_again(cublas: None) -> None:
    kernels, wrong = Kernels(LACKING), Kernels(RuntimeError("shapes differ"))
    with deterministic_kernels(GPU):
        with pytest.raises(RuntimeError, match="shapes differ"):
            computed(GPU, wrong.compute)
        assert settings() == DEMANDED
        assert computed(GPU, kernels.compute) == "done"
        assert settings() == WISHED
    assert kernels.settings == [DEMANDED, WISHED]
    with pytest.raises(RuntimeError, match="put_"):
        computed(CPU, kernels.compute)


@pytest.mark.parametrize("cublas", [False], indirect=True)
def test_a_gpu_that_was_used_before_gets_plain_attention(cublas: None) -> None:
    block = deterministic_kernels(GPU)
    with pytest.warns(UserWarning, match="CUBLAS_WORKSPACE_CONFIG"):
        block.__enter__()
    assert settings() == WISHED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with deterministic_kernels(GPU):
            assert settings() == WISHED
    block.__exit__(None, None, None)


@pytest.mark.parametrize("cublas", [True], indirect=True)
def test_settings_are_given_back_after_an_error(cublas: None) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(ZeroDivisionError):
            _divide_by_zero_on_a_gpu()
        assert settings()[:3] == (True, True, True)
    finally:
        torch.use_deterministic_algorithms(False)


def _divide_by_zero_on_a_gpu() -> None:
    with deterministic_kernels(GPU):
        assert settings() == DEMANDED
        _ = 1 / 0


def test_only_the_words_of_pytorch_mean_that_there_is_no_kernel() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert lacks_kernel(caught.value)
    assert not lacks_kernel(RuntimeError("shapes differ"))
    assert not lacks_kernel(ValueError("deterministic implementation"))


def test_the_workspace_is_fixed_unless_a_user_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fix_workspace()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    fix_workspace()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
}
WINDOW: dict[str, Any] = {"head_dim": 8, "sliding_window": 16}
LAYERS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
# Layers whose records are longer than their window: a mask says so, and FlashAttention takes none.
ATTENTION = {
    "llama": (hf.LlamaConfig(**SIZES), 0),
    "qwen3": (hf.Qwen3Config(**SIZES, head_dim=8), 0),
    "mistral": (hf.MistralConfig(**SIZES, sliding_window=None), 0),
    "mistral, window": (hf.MistralConfig(**SIZES, sliding_window=16), 2),
    "mixtral": (hf.MixtralConfig(**SIZES, num_local_experts=4), 0),
    "gemma3": (hf.Gemma3TextConfig(**SIZES, **WINDOW, **LAYERS), 1),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_padded_records_need_no_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right padding under a causal mask: FlashAttention takes such records, and none with masks."""
    config, masked_layers = ATTENTION[name]
    calls: list[tuple[bool, bool]] = []
    attention = F.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append((kwargs["attn_mask"] is not None, kwargs["is_causal"]))
        return attention(*args, **kwargs)

    loss = CausalLmLoss(hf.AutoModelForCausalLM.from_config(config).eval())
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    batch = random_batch(VOCABULARY, 3, 24, CPU)
    batch.loss_weights_BT[:, 10:] = 0.0
    loss(batch)
    assert calls == [(True, False)] * masked_layers + [(False, True)] * (2 - masked_layers)
