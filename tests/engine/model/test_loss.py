"""The loss of a record is made of its own tokens, weights and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_models import VOCABULARY, build, random_batch
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy


def random_logits(b: int, t: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(b * 100 + t)
    return torch.randn(b, t, VOCABULARY, generator=generator)


def test_is_the_mean_over_the_records_own_targets() -> None:
    batch = random_batch([7, 3], [0, 1])
    logits = random_logits(2, 7)
    losses = weighted_cross_entropy(logits, batch.input_ids_BT, batch.loss_weights_BT)
    for row, length in enumerate([7, 3]):
        log_p = logits[row].log_softmax(-1)
        ids = batch.input_ids_BT[row]
        nll = [-float(log_p[t - 1, ids[t]]) for t in range(1, length)]
        assert float(losses[row]) == pytest.approx(sum(nll) / len(nll), rel=1e-5)


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    others=st.lists(st.integers(2, 30), min_size=0, max_size=5),
)
def test_records_beside_it_change_nothing(lengths: list[int], others: list[int]) -> None:
    """No mean over the batch's tokens, by which one long record would rescale all others."""
    together = random_batch(lengths + others, [0] * len(lengths + others))
    logits = random_logits(*together.input_ids_BT.shape)
    losses = weighted_cross_entropy(logits, together.input_ids_BT, together.loss_weights_BT)
    for row, length in enumerate(lengths):
        alone = weighted_cross_entropy(
            logits[row : row + 1, :length],
            together.input_ids_BT[row : row + 1, :length],
            together.loss_weights_BT[row : row + 1, :length],
        )
        torch.testing.assert_close(losses[row : row + 1], alone)


def test_weight_zero_leaves_out_even_nan() -> None:
    batch = random_batch([5, 4], [0, 1])
    logits = random_logits(2, 5)
    logits[1, 3:] = float("nan")
    losses = weighted_cross_entropy(logits, batch.input_ids_BT, batch.loss_weights_BT)
    assert torch.isfinite(losses).all()


def test_position_zero_and_prompts_are_no_targets() -> None:
    batch = random_batch([5], [0])
    weights = torch.tensor([[9.0, 0.0, 0.0, 0.5, 0.5]])
    logits = random_logits(1, 5)
    nll = -logits[0].log_softmax(-1)
    ids = batch.input_ids_BT[0]
    expected = 0.5 * float(nll[2, ids[3]] + nll[3, ids[4]])
    loss = weighted_cross_entropy(logits, batch.input_ids_BT, weights)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_record_without_targets_costs_nothing() -> None:
    batch = random_batch([5], [0])
    logits = random_logits(1, 5).requires_grad_()
    loss = weighted_cross_entropy(logits, batch.input_ids_BT, torch.zeros(1, 5))
    assert loss.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_computed_in_fp32(dtype: torch.dtype) -> None:
    batch = random_batch([6, 4], [0, 1])
    logits = random_logits(2, 6).to(dtype)
    losses = weighted_cross_entropy(logits, batch.input_ids_BT, batch.loss_weights_BT)
    assert losses.dtype == torch.float32
    exact = weighted_cross_entropy(logits.float(), batch.input_ids_BT, batch.loss_weights_BT)
    assert torch.equal(losses, exact)


def test_one_loss_per_sequence_of_a_model() -> None:
    batch = random_batch([6, 4, 9], [0, 1, 0])
    losses = CausalLmLoss(build("gpt2"))(batch)
    assert losses.shape == (3,)
    assert losses.requires_grad
