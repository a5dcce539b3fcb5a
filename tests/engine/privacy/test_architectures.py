"""Per-unit gradients equal one backward pass per unit, for every architecture that is promised.

LoRA and full fine-tuning, tied and untied embeddings, checkpointing on and off, several sequences
per unit, any split into microbatches; parameter by parameter, not only in total norm.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from support.tiny_models import CONFIGS, build, random_batch, units_of, with_lora
from taciturn.engine.model.dropout import disable_dropout
from taciturn.engine.model.experts import use_exact_experts
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import unit_norms
from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.engine.privacy.verification import brute_force_gradients, public_batch, verify

METHODS = ("full", "lora")
BATCH = random_batch(lengths=[7, 4, 11, 2, 9, 5], units=[0, 1, 3, 2, 0, 3], seed=5, padding=2)
# These compute some of their activations in fp32 even where everything else is float64.
FP32_INSIDE = {"gemma2", "gemma3", "bloom", "mpt"}
# Splits of the units of BATCH into microbatches, in any order.
SPLITS = ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[2, 0, 3], [1]])
pytestmark = pytest.mark.filterwarnings("ignore")
every_architecture = pytest.mark.parametrize("name", CONFIGS)
both_methods = pytest.mark.parametrize("method", METHODS)


def fitted(name: str, method: str, dtype: torch.dtype = torch.float32) -> CausalLmLoss:
    """The loss of a tiny model, prepared as the loader prepares it."""
    model = build(name)
    disable_dropout(model)
    use_exact_experts(model)
    if method == "lora":
        model = with_lora(model)
    return CausalLmLoss(model.to(dtype))


def checkpointed(loss: CausalLmLoss) -> CausalLmLoss:
    """The same with activations recomputed in the backward pass."""
    model: Any = loss.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return loss


def assert_exact(
    gradients: PerUnitGradients, truth: list[dict[str, Tensor]], relative: float, floor: float
) -> None:
    """Norms to `relative`; each parameter to `relative` of itself plus `floor` of the unit's norm.

    The floor is for gradients that are zero but for rounding: a key's bias under softmax.
    """
    norms, values = unit_norms(gradients).tolist(), gradients.dense()
    for unit, expected in enumerate(truth):
        whole = math.hypot(*(float(value.double().norm()) for value in expected.values()))
        assert norms[unit] == pytest.approx(whole, rel=relative)
        for name, value in expected.items():
            error = float((values[name][unit] - value).double().norm())
            assert error <= relative * float(value.double().norm()) + floor * whole, name


@every_architecture
@both_methods
def test_equals_brute_force(name: str, method: str) -> None:
    loss = fitted(name, method)
    gradients = per_example_gradients(loss, BATCH)
    assert gradients.values.keys() == trainable_parameters(loss).keys()
    assert_exact(gradients, brute_force_gradients(loss, BATCH), relative=1e-5, floor=1e-6)


@every_architecture
@both_methods
def test_equals_brute_force_in_float64(name: str, method: str) -> None:
    """Where rounding is out of the way, so is every doubt about a small error."""
    loss = fitted(name, method, torch.float64)
    truth = brute_force_gradients(loss, BATCH)
    relative, floor = (1e-5, 1e-6) if name in FP32_INSIDE else (1e-10, 1e-12)
    assert_exact(per_example_gradients(loss, BATCH), truth, relative, floor)


@every_architecture
@both_methods
def test_checkpointing_changes_nothing(name: str, method: str) -> None:
    loss = fitted(name, method)
    plain = per_example_gradients(loss, BATCH)
    again = per_example_gradients(checkpointed(loss), BATCH)
    assert_exact(again, per_unit(plain), relative=1e-6, floor=1e-7)
    torch.testing.assert_close(again.losses_U, plain.losses_U)


@every_architecture
@both_methods
def test_any_split_gives_the_same(name: str, method: str) -> None:
    loss = fitted(name, method)
    whole = per_unit(per_example_gradients(loss, BATCH))
    for units in itertools.chain(*SPLITS):
        part = per_example_gradients(loss, units_of(BATCH, units))
        assert_exact(part, [whole[unit] for unit in units], relative=1e-5, floor=1e-6)


def per_unit(gradients: PerUnitGradients) -> list[dict[str, Tensor]]:
    n_units = len(gradients.losses_U)
    return [{name: g[u] for name, g in gradients.dense().items()} for u in range(n_units)]


@every_architecture
@both_methods
def test_factors_give_the_same_norms_and_sums(name: str, method: str) -> None:
    """Every matrix that can be kept as factors is: tied weights, transposed ones, uneven units."""
    loss = fitted(name, method, torch.float64)
    gradients = per_example_gradients(loss, BATCH, Form.FACTORS)
    truth = brute_force_gradients(loss, BATCH)
    relative, floor = (1e-5, 1e-6) if name in FP32_INSIDE else (1e-8, 1e-10)
    assert_exact(gradients, truth, relative, floor)
    scale_U = torch.tensor([0.3, 0.0, 1.0, 0.7], dtype=torch.float64)
    for parameter, value in gradients.values.items():
        if isinstance(value, FactoredGradients):
            expected: Any = sum(scale_U[u] * truth[u][parameter] for u in range(BATCH.n_units))
            error = float((value.weighted_sum(scale_U) - expected).norm())
            assert error <= max(relative, 1e-6) * max(1.0, float(expected.norm())), parameter


@every_architecture
def test_full_fine_tuning_keeps_factors(name: str) -> None:
    """The fast path is really taken: all matrices of all models but those routed to experts."""
    gradients = per_example_gradients(fitted(name, "full"), BATCH, Form.FACTORS)
    kept = [key for key, each in gradients.values.items() if isinstance(each, FactoredGradients)]
    matrices = [key for key, each in gradients.dense().items() if each.ndim == 3]
    assert set(matrices) <= set(kept)
    assert len(kept) >= 4


@every_architecture
@both_methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_verified_before_a_run(name: str, method: str, dtype: torch.dtype) -> None:
    verify(fitted(name, method, dtype), public_batch(vocab_size=61))


@every_architecture
def test_loss_depends_on_its_record_alone(name: str) -> None:
    loss = fitted(name, "full")
    alone = UnitBatch(
        BATCH.input_ids_BT[:1, :7], BATCH.loss_weights_BT[:1, :7], torch.tensor([0]), n_units=1
    )
    with torch.no_grad():
        torch.testing.assert_close(loss(BATCH)[:1], loss(alone), rtol=1e-5, atol=1e-6)
