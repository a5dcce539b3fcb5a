"""The output layer and its loss in one: value and gradients of the plain way, in any chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taciturn.engine.model.loss import weighted_cross_entropy
from taciturn.engine.privacy import head
from taciturn.engine.privacy.clipping import unit_norms
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.head import head_cross_entropy
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.privacy.verification import brute_force_gradients, public_batch

V, D, R = 19, 6, 2
BATCH = public_batch(V)
B, T = BATCH.input_ids_BT.shape


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Probe(nn.Module):
    """Activations that depend on the tokens, and an output layer with an adapter beside it."""

    def __init__(self, *, fused: bool, trained: str = "all") -> None:
        super().__init__()
        self.fused = fused
        self.table = nn.Parameter(random(V, D))
        self.weight = nn.Parameter(random(V, D, seed=1))
        self.low = nn.Parameter(random(R, D, seed=2))
        self.up = nn.Parameter(random(V, R, seed=3))
        for name, value in self.named_parameters():
            value.requires_grad_(trained in ("all", name))

    def forward(self, batch: UnitBatch) -> Tensor:
        ids, weights = batch.input_ids_BT, batch.loss_weights_BT
        hidden = nn.functional.embedding(ids, self.table).cumsum(1).tanh()
        low = nn.functional.linear(hidden, self.low)
        if self.fused:
            return head_cross_entropy([(hidden, self.weight), (low, self.up)], ids, weights)
        logits = nn.functional.linear(hidden, self.weight) + nn.functional.linear(low, self.up)
        return weighted_cross_entropy(logits, ids, weights)


@pytest.mark.parametrize("trained", ["all", "table", "weight", "low", "up"])
@pytest.mark.parametrize("chunk", [1, 3 * V, 1 << 22])
def test_equals_the_plain_way(trained: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK", chunk)
    fused, plain = Probe(fused=True, trained=trained), Probe(fused=False, trained=trained)
    # Sequences count differently, as when one unit is looked at alone.
    upstream = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    losses = [probe(BATCH) for probe in (fused, plain)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        (loss * upstream).sum().backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("trained", ["all", "weight", "up"])
@pytest.mark.parametrize("form", list(Form))
def test_per_unit_gradients(trained: str, form: Form) -> None:
    truth = brute_force_gradients(Probe(fused=False, trained=trained), BATCH)
    gradients = per_example_gradients(Probe(fused=True, trained=trained), BATCH, form).dense()
    for unit, expected in enumerate(truth):
        for name, value in expected.items():
            torch.testing.assert_close(gradients[name][unit], value)


def test_position_without_weight_plays_no_part() -> None:
    hidden, weight = random(B, T, D).requires_grad_(), random(V, D, seed=1)
    with torch.no_grad():
        hidden[:, -1] = float("nan")  # predicts nothing
    loss = head_cross_entropy([(hidden, weight)], BATCH.input_ids_BT, BATCH.loss_weights_BT)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    assert not hidden.grad[:, -1].any()


@pytest.mark.parametrize("form", list(Form))
def test_position_without_weight_plays_no_part_in_fitted_weights(form: Form) -> None:
    """Not even where it stands in for a target that a shorter sequence lacks."""
    clean, dirty = Probe(fused=True, trained="weight"), Probe(fused=True, trained="weight")
    with torch.no_grad():
        for probe, value in ((clean, 0.0), (dirty, float("nan"))):
            probe.table[0] = value  # what pads; `cumsum` spreads it over positions that follow
    expected = per_example_gradients(clean, BATCH, form)
    gradients = per_example_gradients(dirty, BATCH, form)
    assert torch.isfinite(gradients.losses_U).all()
    torch.testing.assert_close(gradients.dense(), expected.dense())
    torch.testing.assert_close(unit_norms(gradients), unit_norms(expected))


@pytest.mark.parametrize("targets", [(0, 0, 0, 12), (1, 1, 1, 1), (12, 12, 12, 12), (5, 0, 12, 1)])
@pytest.mark.parametrize("form", list(Form))
def test_sequences_with_other_numbers_of_targets(form: Form, targets: tuple[int, ...]) -> None:
    """Targets at the end, as after a prompt."""
    weights_BT = torch.zeros(B, T)
    for row, count in enumerate(targets):
        weights_BT[row, T - count :] = 0.3
    batch = UnitBatch(BATCH.input_ids_BT, weights_BT, BATCH.unit_of_B, BATCH.n_units)
    truth = brute_force_gradients(Probe(fused=False), batch)
    gradients = per_example_gradients(Probe(fused=True), batch, form).dense()
    for unit, expected in enumerate(truth):
        for name, value in expected.items():
            torch.testing.assert_close(gradients[name][unit], value)


def test_choice_of_form_does_not_depend_on_the_number_of_targets() -> None:
    """It is private."""
    few = torch.zeros(B, T)
    few[:, -1] = 1.0
    kinds = []
    for weights_BT in (few, BATCH.loss_weights_BT):
        batch = UnitBatch(BATCH.input_ids_BT, weights_BT, BATCH.unit_of_B, BATCH.n_units)
        gradients = per_example_gradients(Probe(fused=True), batch, Form.AUTO)
        kinds.append([type(value) for value in gradients.values.values()])
    assert kinds[0] == kinds[1]


def test_batch_without_any_target() -> None:
    hidden, weight = random(B, T, D).requires_grad_(), random(V, D).requires_grad_()
    nothing = torch.zeros_like(BATCH.loss_weights_BT)
    loss = head_cross_entropy([(hidden, weight)], BATCH.input_ids_BT, nothing)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert not loss.any()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_half_precision_is_summed_in_fp32() -> None:
    hidden, weight = random(B, T, D).bfloat16().requires_grad_(), random(V, D).bfloat16()
    loss = head_cross_entropy([(hidden, weight)], BATCH.input_ids_BT, BATCH.loss_weights_BT)
    expected = weighted_cross_entropy(hidden @ weight.T, BATCH.input_ids_BT, BATCH.loss_weights_BT)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
