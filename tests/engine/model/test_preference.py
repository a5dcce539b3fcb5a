"""The loss of pairs is the paper's, and its per-unit gradients are those of one pass per unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.data.tokens.pairs import interleaved
from taciturn.data.tokens.store import TokenizedRecord
from taciturn.engine.model.preference import PreferenceLoss, sequences
from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.privacy.verification import (
    brute_force_gradients,
    long_public_batch,
    public_batch,
    same_in_company,
    verify,
)
from taciturn.engine.training.batch import collate
from taciturn.errors import ModelError, UnsupportedLayerError

BETA = 0.3
Pair = tuple[list[int], list[int], list[int]]


def loss_of(name: str = "llama") -> PreferenceLoss:
    """A model whose adapter has moved away from the base."""
    model = with_lora(build(name).requires_grad_(False))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return PreferenceLoss(model, BETA)


def pairs(count: int, seed: int = 0) -> list[Pair]:
    generator = np.random.default_rng(seed)

    def some(least: int, most: int) -> list[int]:
        return generator.integers(VOCABULARY, size=generator.integers(least, most)).tolist()

    return [(some(2, 9), some(1, 7), some(1, 12)) for _ in range(count)]


def batch_of(some: Sequence[Pair], units: Sequence[int]) -> UnitBatch:
    rows = [
        (TokenizedRecord(*interleaved(prompt, (chosen, rejected), 24)), unit)
        for (prompt, chosen, rejected), unit in zip(some, units, strict=True)
    ]
    return collate(rows, max(units) + 1, 48)


def log_p(model: nn.Module, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probability of an answer, token by token, of this sequence alone."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids).logits[0].float().log_softmax(-1)
    places = range(len(prompt), len(prompt) + len(answer))
    return torch.stack([logits[place - 1, ids[0, place]] for place in places]).sum()


def papers_loss(loss: PreferenceLoss, pair: Pair) -> Tensor:
    prompt, chosen, rejected = pair
    with torch.no_grad(), loss.model.disable_adapter():  # type: ignore[operator]
        base = [log_p(loss.model, prompt, answer) for answer in (chosen, rejected)]
    own = [log_p(loss.model, prompt, answer) for answer in (chosen, rejected)]
    return -F.logsigmoid(BETA * ((own[0] - base[0]) - (own[1] - base[1])))


def test_is_the_papers_loss() -> None:
    loss, some = loss_of(), pairs(5)
    with torch.no_grad():
        losses_B = loss(batch_of(some, range(5)))
        expected = torch.stack([papers_loss(loss, pair) for pair in some])
    torch.testing.assert_close(losses_B, expected, rtol=1e-4, atol=1e-5)


def test_is_log_two_before_a_step() -> None:
    """The base with a new adapter is the base, to the last bit."""
    model = with_lora(build("llama").requires_grad_(False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    loss = PreferenceLoss(model, BETA)
    assert not loss.margins(batch_of(pairs(3), [0, 1, 2])).any()
    losses_B = loss(batch_of(pairs(3), [0, 1, 2]))
    torch.testing.assert_close(losses_B, torch.full((3,), 2.0).log())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS, Form.AUTO])
def test_gradients_are_those_of_one_pass_per_unit(name: str, form: Form) -> None:
    loss, units = loss_of(name), [2, 0, 1, 0, 2, 2]  # one to three pairs a unit, not side by side
    batch = batch_of(pairs(6), units)
    gradients = per_example_gradients(loss, batch, form).dense()
    for unit, truth in enumerate(brute_force_gradients(loss, batch)):
        for parameter, value in truth.items():
            torch.testing.assert_close(gradients[parameter][unit], value, rtol=1e-3, atol=1e-6)


def test_gradients_are_those_of_the_papers_loss() -> None:
    """Brute force without this module: sequences one by one, PEFT's own switch for the base."""
    loss, some, units = loss_of(), pairs(5), [0, 1, 0, 1, 1]
    gradients = per_example_gradients(loss, batch_of(some, units), Form.INSTANTIATE).dense()
    named = trainable_parameters(loss)
    for unit in (0, 1):
        own = [papers_loss(loss, pair) for pair, of in zip(some, units, strict=True) if of == unit]
        truth = torch.autograd.grad(torch.stack(own).sum(), list(named.values()))
        for parameter, value in zip(named, truth, strict=True):
            torch.testing.assert_close(gradients[parameter][unit], value, rtol=1e-3, atol=1e-6)


def test_removing_a_unit_moves_the_sum_by_its_own_clipped_gradient() -> None:
    loss, some = loss_of(), pairs(4)
    clip = 0.1

    def total(chosen: list[Pair], units: list[int]) -> Tensor:
        gradients = per_example_gradients(loss, batch_of(chosen, units), Form.INSTANTIATE)
        values = clip_and_sum(gradients, clip).values.values()
        return torch.cat([value.flatten() for value in values])

    whole, without = total(some, [0, 1, 1, 2]), total([some[0], some[3]], [0, 1])
    assert float((whole - without).norm()) <= clip * (1 + 1e-4)


def test_is_verified_before_a_run_and_rounds_alike_in_company() -> None:
    loss = loss_of()
    verify(loss, public_batch(VOCABULARY), long_public_batch(VOCABULARY, 48))
    assert same_in_company(loss, VOCABULARY, (4, 16))


def test_verification_refuses_pairs_that_mix() -> None:
    class Mixed(PreferenceLoss):
        def margins(self, batch: UnitBatch) -> Tensor:
            margins_B = super().margins(batch)
            return margins_B + 0.1 * margins_B.sum()

    with pytest.raises(UnsupportedLayerError):
        verify(Mixed(loss_of().model, BETA), public_batch(VOCABULARY))


def test_trains_what_was_trained_and_leaves_the_adapter_on() -> None:
    """PEFT's own switch makes all adapter matrices trainable, fixed ones too."""
    loss = loss_of()
    for name, parameter in loss.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    before = {name: value.requires_grad for name, value in loss.named_parameters()}
    loss(batch_of(pairs(2), [0, 1])).sum().backward()
    assert before == {name: value.requires_grad for name, value in loss.named_parameters()}
    moved = loss.margins(batch_of(pairs(2), [0, 1]))
    assert moved.abs().min() > 0


def test_a_row_without_targets_adds_nothing() -> None:
    loss = loss_of()
    batch = batch_of(pairs(2), [0, 1])
    silent = UnitBatch(
        batch.input_ids_BT, batch.loss_weights_BT * torch.tensor([[1.0], [0.0]]), batch.unit_of_B, 2
    )
    gradients = per_example_gradients(loss, silent, Form.INSTANTIATE)
    assert float(gradients.losses_U[1].detach()) == 0
    assert all(not value[1].any() for value in gradients.dense().values())


def test_sequences_are_taken_apart_at_any_width() -> None:
    prompt, chosen, rejected = [5, 6], [7], [8, 9, 10]
    ids, targets = interleaved(prompt, (chosen, rejected), 24)
    for width in (len(ids), len(ids) + 1, len(ids) + 6):
        padded = torch.zeros(1, width, dtype=torch.int64)
        weights = torch.zeros(1, width)
        padded[0, : len(ids)] = torch.from_numpy(ids).long()
        weights[0, : len(ids)] = torch.from_numpy(targets).float() / int(targets.sum())
        sides = sequences(UnitBatch(padded, weights, torch.zeros(1, dtype=torch.int64), 1))
        for side, answer in zip(sides, (chosen, rejected), strict=True):
            length = len(prompt) + len(answer)
            assert side.input_ids_BT[0, :length].tolist() == prompt + answer
            assert list(nonzero(side.loss_weights_BT[0])) == list(range(len(prompt), length))
            assert set(side.loss_weights_BT[0].tolist()) == {0.0, 1.0}


def nonzero(values: Tensor) -> Iterator[int]:
    return (place for place, value in enumerate(values.tolist()) if value)


def test_needs_an_adapter() -> None:
    with pytest.raises(ModelError, match="adapters off"):
        PreferenceLoss(build("llama"), BETA)
