"""What is tried around the kernel differs from it in what it says, and in nothing else."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from evidence.tried import Debiased, OwnAdam, Shrunk, by_tokens, rarer
from taciturn.engine.privacy.types import PrivateGradient
from taciturn.engine.privacy.verification import public_batch
from taciturn.engine.training.state import TrainingState
from taciturn.planning.optimizer import OptimizerConfig

CONFIG = OptimizerConfig(learning_rate=0.1, steps=5, decay=False, beta2=0.99)
NOISE = 0.5


def fitted(kind: type[TrainingState], gradients: list[Tensor]) -> Tensor:
    """Weights after steps on these gradients."""
    weights = nn.Parameter(torch.zeros(gradients[0].shape))
    state = kind({"w": weights}, CONFIG, private=True)
    for gradient in gradients:
        state.apply(PrivateGradient({"w": gradient}, NOISE))
    return weights.detach()


def noises(size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [size * torch.randn(8, 50, generator=generator) for _ in range(5)]


def test_adam_without_a_difference_is_the_optimiser() -> None:
    torch.testing.assert_close(fitted(OwnAdam, noises(1)), fitted(TrainingState, noises(1)))


def test_mere_noise_is_shrunk_to_little_and_a_signal_is_not() -> None:
    state = Shrunk({"w": nn.Parameter(torch.zeros(8, 50))}, CONFIG, private=True)
    state.apply(PrivateGradient({"w": torch.full((8, 50), 100.0)}, NOISE))
    assert torch.all(state.tensors()["exp_avg/w"] > 9.99)
    state = Shrunk({"w": nn.Parameter(torch.zeros(8, 50))}, CONFIG, private=True)
    state.apply(PrivateGradient({"w": noises(0.9 * NOISE)[0]}, NOISE))
    assert not state.tensors()["exp_avg/w"].any()


def test_without_the_noise_in_its_second_moment_adam_goes_further() -> None:
    gradients = [gradient + 0.1 for gradient in noises(NOISE)]
    assert fitted(Debiased, gradients).norm() > 1.2 * fitted(OwnAdam, gradients).norm()


def test_weights_count_tokens_or_their_surprise() -> None:
    batch, frequencies_V = public_batch(61), torch.linspace(1, 2, 61) / 91.5
    counted_BT = batch.loss_weights_BT > 0
    assert torch.equal(by_tokens(batch, frequencies_V), counted_BT.float())
    weights_BT = rarer(batch, frequencies_V)
    torch.testing.assert_close(weights_BT.sum(1), torch.ones(4))
    packed = replace(batch, loss_weights_BT=2 * batch.loss_weights_BT)
    torch.testing.assert_close(rarer(packed, frequencies_V), 2 * weights_BT)
    surprise_BT = -frequencies_V.log()[batch.input_ids_BT]
    assert weights_BT[1].argmax() == (surprise_BT[1] * counted_BT[1]).argmax()
