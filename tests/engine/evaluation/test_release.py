"""What leaves about private units is bounded, noised and undone to the right figures."""

from __future__ import annotations

import math
from typing import Any

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


def declared(n_present: int, noise: float, key: bytes = KEY, n_declared: int = 400) -> Any:
    return release(
        [scores(n_present, seed=3)],
        None,
        0,
        loss_bound=6.0,
        noise_multiplier=noise,
        stream=SecureStream(key),
        declared_units=n_declared,
    ).scores[0]


@pytest.mark.parametrize("present", [100, 400, 900])
def test_means_are_over_who_is_there_whatever_was_declared(present: int) -> None:
    """Divided by the declared number alone they would be drawn towards the middle."""
    exact = scores(present, seed=3)
    nats = (exact.nats_U / exact.tokens_U).clamp(max=6.0).mean()
    found = declared(present, SILENT)
    assert found.nats_per_token == pytest.approx(float(nats), abs=1e-4)
    assert found.token_accuracy == pytest.approx(
        float((exact.correct_U / exact.tokens_U).mean()), abs=1e-4
    )


def test_the_number_who_are_there_is_noised_and_paid_for() -> None:
    """It is one more figure of the row, so that the bound on a row grows with it."""
    clips = []

    class Watched(module.GaussianStatistic):
        def release(self, values_UK: torch.Tensor, stream: SecureStream) -> Any:
            clips.append(self.l2_clip_norm)
            assert float(values_UK.norm(dim=1).max()) <= self.l2_clip_norm * (1 + 1e-9)
            assert self.n_units == 400
            return super().release(values_UK, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GaussianStatistic", Watched)
        declared(100, 1.0)
    assert clips == [pytest.approx(math.sqrt(3))]


def test_stated_noise_of_a_quotient_is_what_it_has() -> None:
    found = [declared(300, 2.0, key(i)) for i in range(400)]
    errors = np.array([each.token_accuracy for each in found])
    stated = np.mean([each.accuracy_std for each in found])
    assert errors.std() == pytest.approx(stated, rel=0.15)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.mark.parametrize("noise", [SILENT, 2.0])
def test_nobody_may_be_there(noise: float) -> None:
    found = declared(0, noise)
    assert 0 <= found.nats_per_token <= 6.0
    assert 0 <= found.token_accuracy <= 1


def test_the_cost_is_told_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def refuse(event: object) -> None:
        told.append(event)
        raise KeyError("no room")

    monkeypatch.setattr(module.GaussianStatistic, "release", lambda *_: pytest.fail("it ran"))
    settings: Any = {"loss_bound": 6.0, "noise_multiplier": 1.5, "stream": SecureStream(KEY)}
    with pytest.raises(KeyError):
        release([scores(9)], None, 0, **settings, before=refuse)
    assert told == [GaussianDpEvent(1.5)]
