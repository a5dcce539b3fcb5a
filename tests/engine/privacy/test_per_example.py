"""Per-unit gradients: parts add up, records stay apart, and what cannot be right is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from support.tiny_models import build, random_batch, units_of, with_lora
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import unit_norms
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import (
    per_example_gradients,
    sum_parts,
    trainable_parameters,
)
from taciturn.engine.privacy.types import UnitBatch
from taciturn.errors import GuaranteeError, UnsupportedLayerError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
LENGTHS = [9, 3, 12, 5, 2, 7]
UNITS = [0, 1, 0, 2, 1, 0]
BATCH = random_batch(LENGTHS, UNITS)


@pytest.fixture(scope="module")
def loss() -> CausalLmLoss:
    return CausalLmLoss(build("llama-tied").double())


def rows(batch: UnitBatch, chosen: list[int], tokens: int | None = None) -> UnitBatch:
    return UnitBatch(
        batch.input_ids_BT[chosen, :tokens],
        batch.loss_weights_BT[chosen, :tokens],
        batch.unit_of_B[chosen],
        batch.n_units,
    )


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1, 2, 3, 4, 5]],
        [[0], [1], [2], [3], [4], [5]],
        [[0, 2], [5, 1], [3, 4]],
        [[3], [0, 1, 2, 4, 5]],
    ],
)
def test_parts_of_the_same_units_add_up(loss: CausalLmLoss, parts: list[list[int]]) -> None:
    whole = per_example_gradients(loss, BATCH)
    summed = sum_parts(loss, (rows(BATCH, part) for part in parts))
    torch.testing.assert_close(summed.losses_U, whole.losses_U)
    for name, value in whole.values.items():
        torch.testing.assert_close(summed.values[name], value, rtol=1e-10, atol=1e-12)


def test_one_unit_of_many_records_needs_no_giant_batch(loss: CausalLmLoss) -> None:
    many = random_batch([4 + n % 9 for n in range(24)], [0] * 24)
    parts = [rows(many, list(range(n, n + 3)), tokens=12) for n in range(0, 24, 3)]
    whole, summed = per_example_gradients(loss, many), sum_parts(loss, parts)
    assert float(unit_norms(summed)) == pytest.approx(float(unit_norms(whole)), rel=1e-10)


def test_parts_of_bf16_are_added_in_fp32() -> None:
    loss = CausalLmLoss(build("llama").bfloat16())
    parts = [rows(BATCH, [0]), rows(BATCH, [0])]
    once = per_example_gradients(loss, parts[0])
    twice = sum_parts(loss, parts)
    for name, value in twice.values.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, 2 * once.values[name].float(), rtol=0, atol=0)


def test_parts_over_other_units_are_refused(loss: CausalLmLoss) -> None:
    with pytest.raises(ValueError, match="3 and 1 units"):
        sum_parts(loss, [BATCH, units_of(BATCH, [1])])
    with pytest.raises(ValueError, match="no part"):
        sum_parts(loss, [])


def test_unit_without_a_sequence_has_a_zero_gradient(loss: CausalLmLoss) -> None:
    gradients = per_example_gradients(loss, rows(BATCH, [0, 3]))
    assert unit_norms(gradients)[1] == 0
    assert gradients.losses_U[1] == 0


def test_record_without_targets_has_a_zero_gradient(loss: CausalLmLoss) -> None:
    weights = BATCH.loss_weights_BT.clone()
    weights[3] = 0
    gradients = per_example_gradients(
        loss, UnitBatch(BATCH.input_ids_BT, weights, BATCH.unit_of_B, BATCH.n_units)
    )
    assert unit_norms(gradients)[2] == 0
    nothing = UnitBatch(BATCH.input_ids_BT, weights * 0, BATCH.unit_of_B, BATCH.n_units)
    assert unit_norms(per_example_gradients(loss, nothing)).tolist() == [0, 0, 0]


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(2, 14), min_size=1, max_size=6),
    other=st.integers(2, 20),
    padding=st.integers(0, 5),
    data=st.data(),
)
def test_another_record_changes_nothing(
    loss: CausalLmLoss, lengths: list[int], other: int, padding: int, data: st.DataObject
) -> None:
    """A mean over the batch's tokens would make a long record rescale all those beside it."""
    units = [data.draw(st.integers(0, n)) for n in range(len(lengths))]
    units = [sorted(set(units)).index(unit) for unit in units]
    batch = random_batch(lengths, units)
    beside = random_batch([*lengths, other], [*units, batch.n_units], padding=padding)
    before, after = per_example_gradients(loss, batch), per_example_gradients(loss, beside)
    torch.testing.assert_close(after.losses_U[:-1], before.losses_U)
    for name, value in before.values.items():
        torch.testing.assert_close(after.values[name][:-1], value, rtol=1e-8, atol=1e-10)


def test_nan_of_one_record_stays_its_own(loss: CausalLmLoss) -> None:
    """A record that overflows must not reach its neighbours' gradients."""
    poison = 60
    table: Any = loss.model.get_input_embeddings().weight  # type: ignore[operator]
    batch = random_batch(LENGTHS, UNITS, seed=4)
    batch.input_ids_BT[batch.input_ids_BT == poison] = 1
    clean = per_example_gradients(loss, batch)
    kept = table[poison].detach().clone()
    try:
        with torch.no_grad():
            table[poison] = float("nan")
        # The head is tied: only a token at the input would tell, so the loss is taken untied.
        batch.input_ids_BT[3, 1] = poison
        dirty = per_example_gradients(Untied(loss.model), batch)
    finally:
        with torch.no_grad():
            table[poison] = kept
    assert torch.isnan(unit_norms(dirty)).tolist() == [False, False, True]
    assert torch.isfinite(unit_norms(clean)).all()


class Untied(nn.Module):
    """A loss on the hidden states alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, batch: UnitBatch) -> Tensor:
        hidden: Tensor = self.model(input_ids=batch.input_ids_BT, use_cache=False).last_hidden_state
        kept = batch.loss_weights_BT != 0
        return torch.where(kept, hidden.square().sum(-1), 0.0).sum(1)


def test_losses_are_of_the_unit(loss: CausalLmLoss) -> None:
    with torch.no_grad():
        losses_B = loss(BATCH)
    gradients = per_example_gradients(loss, BATCH)
    for unit in range(BATCH.n_units):
        of_unit = losses_B[BATCH.unit_of_B == unit].sum()
        torch.testing.assert_close(gradients.losses_U[unit], of_unit)


def test_every_trainable_parameter_once() -> None:
    tied = CausalLmLoss(build("llama-tied"))
    assert not [name for name in trainable_parameters(tied) if "lm_head" in name]
    lora = CausalLmLoss(with_lora(build("llama")))
    assert all("lora_" in name for name in trainable_parameters(lora))
    assert per_example_gradients(lora, BATCH).values.keys() == trainable_parameters(lora).keys()


def test_adapter_that_is_switched_off_is_refused() -> None:
    """An adapter that trains nothing: loss and epsilon would look normal."""
    model: Any = with_lora(build("llama"))
    with model.disable_adapter():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with pytest.raises(UnsupportedLayerError, match="no gradient"):
            per_example_gradients(CausalLmLoss(model), BATCH)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="no trainable parameter"):
        per_example_gradients(CausalLmLoss(build("llama").requires_grad_(False)), BATCH)


def test_gradients_leave_no_trace(loss: CausalLmLoss) -> None:
    """No state hidden on tensors, and the model's own parameters are back in place."""
    before = dict(loss.named_parameters())
    per_example_gradients(loss, BATCH)
    after = dict(loss.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    assert all(value.grad is None for value in after.values())


def test_interrupted_batch_leaves_no_stale_boundaries(loss: CausalLmLoss) -> None:
    """After an early break, the next batch is cut at its own boundaries, not at the last one's."""

    class Breaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, batch: UnitBatch) -> Tensor:
            losses: Tensor = self.loss(batch)
            raise KeyboardInterrupt(losses.shape)

    before = per_example_gradients(loss, BATCH)
    with pytest.raises(KeyboardInterrupt):
        per_example_gradients(Breaking(), rows(BATCH, [4, 1]))
    after = per_example_gradients(loss, BATCH)
    for name, value in before.values.items():
        assert torch.equal(after.values[name], value)


def test_autocast_is_refused(loss: CausalLmLoss) -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(GuaranteeError, match="autocast"),
    ):
        per_example_gradients(loss, BATCH)


def test_loss_of_the_whole_batch_is_refused() -> None:
    class Mean(CausalLmLoss):
        def forward(self, batch: UnitBatch) -> Tensor:
            return super().forward(batch).mean()

    with pytest.raises(ValueError, match="one loss per sequence"):
        per_example_gradients(Mean(build("llama")), BATCH)


def test_reentrant_checkpointing_is_refused() -> None:
    model: Any = build("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        per_example_gradients(CausalLmLoss(model), BATCH)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_products_are_never_of_factors(loss: CausalLmLoss, precision: str) -> None:
    """TF32 on a GPU: norms from Gram matrices would not be those of the sum."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        gradients = per_example_gradients(loss, BATCH, Form.FACTORS)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(isinstance(value, torch.Tensor) for value in gradients.values.values())
    kept = per_example_gradients(loss, BATCH, Form.FACTORS)
    assert not all(isinstance(value, torch.Tensor) for value in kept.values.values())
