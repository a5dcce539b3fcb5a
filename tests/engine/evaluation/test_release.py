"""What leaves about private units is bounded, noised and undone to the right figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent

from taciturn.engine.evaluation import release as module
from taciturn.engine.evaluation.likelihood import UnitScores
from taciturn.engine.evaluation.release import release, release_shares
from taciturn.engine.privacy.rng import SecureStream

KEY = bytes(range(32))
SILENT = 1e-7


def scores(n_units: int, seed: int = 0) -> UnitScores:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 30, (n_units,), generator=generator)
    nats = tokens * torch.rand(n_units, generator=generator).double() * 9
    correct = (tokens * torch.rand(n_units, generator=generator)).long()
    return UnitScores(nats, tokens, correct)


def made(
    figures: list[UnitScores], clusters: torch.Tensor | None = None, noise: float = SILENT
) -> module.Released:
    return release(
        figures,
        clusters,
        4,
        loss_bound=6.0,
        noise_multiplier=noise,
        stream=SecureStream(KEY),
    )


def test_without_noise_it_is_the_bounded_mean() -> None:
    both = [scores(50), scores(50, seed=1)]
    clusters = torch.arange(50) % 3
    released = made(both, clusters)
    for score, exact in zip(released.scores, both, strict=True):
        nats = (exact.nats_U / exact.tokens_U).clamp(max=6.0).mean()
        assert score.nats_per_token == pytest.approx(float(nats), abs=1e-4)
        accuracy = (exact.correct_U / exact.tokens_U).mean()
        assert score.token_accuracy == pytest.approx(float(accuracy), abs=1e-4)
        assert score.perplexity == pytest.approx(math.exp(score.nats_per_token))
    assert released.shares_K == pytest.approx([17 / 50, 17 / 50, 16 / 50, 0], abs=1e-4)


def test_event_is_one_gaussian_for_all_figures() -> None:
    assert made([scores(9)], torch.zeros(9, dtype=torch.int64), 1.5).dp_event == GaussianDpEvent(
        1.5
    )


@pytest.mark.parametrize("compared", [False, True])
def test_rows_stay_below_the_clip_norm(compared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut off by the mechanism's clip, so the mean is that of the bounded figures."""
    seen: list[tuple[torch.Tensor, float]] = []
    real = module.GaussianStatistic

    class Spy(real):  # type: ignore[misc, valid-type]
        def release(self, values_UK: torch.Tensor, stream: SecureStream) -> object:
            seen.append((values_UK, self.l2_clip_norm))
            return real.release(self, values_UK, stream)

    monkeypatch.setattr(module, "GaussianStatistic", Spy)
    wild = UnitScores(torch.tensor([1e9, 0.0]), torch.tensor([1, 5]), torch.tensor([1, 0]))
    made([wild, wild], torch.tensor([0, 3]) if compared else None)
    ((rows, clip),) = seen
    assert float(rows.norm(dim=1).max()) <= clip * (1 + 1e-12)
    assert clip == math.sqrt(5 if compared else 4)


def test_units_without_tokens_count_as_zero() -> None:
    empty = UnitScores(torch.tensor([0.0, 6.0]), torch.tensor([0, 2]), torch.tensor([0, 2]))
    released = made([empty])
    assert math.isfinite(released.scores[0].nats_per_token)
    # The mean of the middle of the range, and of 3 nats or all hits.
    assert released.scores[0].nats_per_token == pytest.approx(3.0, abs=1e-4)
    assert released.scores[0].token_accuracy == pytest.approx(0.75, abs=1e-4)


def test_noise_is_stated_and_fresh_for_each_figure() -> None:
    released = made([scores(10), scores(10)], noise=2.0)
    clip = math.sqrt(4)
    assert released.scores[0].accuracy_std == pytest.approx(2.0 * clip / 10 / 2)
    assert released.scores[0].nats_std == pytest.approx(6.0 * released.scores[0].accuracy_std)
    assert released.scores[0] != released.scores[1]


@pytest.mark.statistical
def test_stated_noise_is_the_real_one() -> None:
    figures = scores(400)
    exact = made([figures]).scores[0]
    errors = []
    for number in range(400):
        stream = SecureStream(number.to_bytes(32, "big"))
        score = release(
            [figures], None, 0, loss_bound=6.0, noise_multiplier=3.0, stream=stream
        ).scores[0]
        errors.append((score.nats_per_token - exact.nats_per_token) / score.nats_std)
    assert abs(np.mean(np.square(errors)) - 1) < 5.5 * math.sqrt(2 / 400)


def test_noised_shares_are_a_distribution() -> None:
    for number in range(20):
        stream = SecureStream(number.to_bytes(32, "big"))
        clusters = torch.tensor([0, 0, 3])
        released = release(
            [scores(3)], clusters, 4, loss_bound=6.0, noise_multiplier=5.0, stream=stream
        )
        assert sum(released.shares_K) == pytest.approx(1)
        assert min(released.shares_K) >= 0


def test_shares_of_hits() -> None:
    hits = [torch.tensor([1.0, 0.0, 0.5, 0.5]), torch.zeros(4)]
    means, std, event = release_shares(hits, noise_multiplier=SILENT, stream=SecureStream(KEY))
    assert means == pytest.approx([0.5, 0.0], abs=1e-5)
    assert std == pytest.approx(SILENT * math.sqrt(2) / 4 / 2)
    assert event == GaussianDpEvent(SILENT)
