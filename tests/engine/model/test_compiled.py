"""Compiled parts give the gradients that plain ones give, and are gone afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from support.tiny_models import build
from taciturn.engine.model.compiled import compile_parts, restore_parts
from taciturn.engine.model.lora import attach
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import unit_norms
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.verification import public_batch, verify
from taciturn.errors import ModelError, SpecError
from taciturn.llm import LLM
from taciturn.planning.plan import AdapterPlan

pytestmark = pytest.mark.timeout(1800)


def model_of(method: str) -> nn.Module:
    torch.manual_seed(0)
    rank = 4 if method == "lora" else None
    plan = AdapterPlan(method=method, r=rank, alpha=rank)  # type: ignore[arg-type]
    # One layer: a compiler takes seconds for each module, and a second layer's are the first's.
    model = attach(build("llama", num_hidden_layers=1), plan)
    with torch.no_grad():  # a zero B would hide A's gradients
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.02 * torch.randn_like(value))
    return model


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What torch.compile writes code with. "aot_eager" traces, splits forward from backward and
    recompiles as Inductor does, and then runs the graphs: without C++ compilers, whose kernels
    take most of the time."""
    name: str = request.param
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=name))
    torch._dynamo.reset()
    return name


@pytest.mark.parametrize(
    ("method", "backend"),
    [
        ("lora", "aot_eager"),
        ("full", "aot_eager"),
        pytest.param("lora", "inductor", marks=pytest.mark.slow),
        pytest.param("full", "inductor", marks=pytest.mark.slow),
    ],
    indirect=["backend"],
)
def test_norms_are_the_same_on_and_off(method: str, backend: str) -> None:
    model = model_of(method)
    loss, batch = CausalLmLoss(model), public_batch(50)
    plain = per_example_gradients(loss, batch)
    assert compile_parts(model, whole=False) > 0
    verify(loss, batch)
    compiled = per_example_gradients(loss, batch)
    torch.testing.assert_close(unit_norms(compiled), unit_norms(plain), rtol=1e-5, atol=0)
    torch.testing.assert_close(compiled.losses_U, plain.losses_U, rtol=1e-5, atol=0)
    restore_parts(model)
    again = per_example_gradients(loss, batch)
    assert torch.equal(unit_norms(again), unit_norms(plain))


def test_nothing_trained_is_compiled() -> None:
    model = model_of("lora")
    compile_parts(model, whole=False)
    for module in model.modules():
        if "forward" in module.__dict__:
            assert not any(value.requires_grad for value in module.parameters())


@pytest.mark.slow
def test_the_whole_body_in_an_ordinary_fit() -> None:
    model = model_of("full")
    loss, batch = CausalLmLoss(model), public_batch(50)
    parameters = list(trainable_parameters(loss).values())
    plain = torch.autograd.grad(loss(batch).sum(), parameters)
    assert compile_parts(model, whole=True) == 1
    compiled = torch.autograd.grad(loss(batch).sum(), parameters)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def settings(epsilon: Any) -> dict[str, Any]:
    return {"text_field": "text", "target_epsilon": epsilon, "batch_size": 8, "steps": 2}


def rows() -> pd.DataFrame:
    return pd.DataFrame({"text": [f"Note {i}: the patient has a cough." for i in range(24)]})


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [4, "unlimited"])
def test_a_fit_with_compile_is_released_plain(
    epsilon: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    model = LLM(str(tiny_llama))
    model.fit(rows(), output=tmp_path / "out", compile=True, method="lora", **settings(epsilon))
    assert not any(
        "forward" in module.__dict__ for module in model._local_model("fit")._fitted.modules()
    )
    assert len(model.sample(["The patient"], max_new_tokens=3)) == 1


def test_a_machine_that_cannot_compile_says_so(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(ModelError, match="set compile=False"):
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "out", compile=True, **settings(4))
    assert not (tmp_path / "out").exists()


def test_not_with_sharded_weights(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match="exclude each other"):
        LLM(str(tiny_llama)).fit(rows(), compile=True, sharding="full", **settings(4))
