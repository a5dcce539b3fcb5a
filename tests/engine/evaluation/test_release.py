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
from taciturn.planning.release import (
    ACCURACY_GAIN_BOUND,
    GAIN_BOUND,
    RowWeights,
    plan_evaluation,
)

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
) -> module.ReleasedScores:
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
    for score, exact in zip(released.scores[:1], both[:1], strict=True):
        nats = (exact.nats_U / exact.tokens_U).clamp(max=6.0).mean()
        assert score.nats_per_token == pytest.approx(float(nats), abs=1e-4)
        accuracy = (exact.correct_U / exact.tokens_U).mean()
        assert score.token_accuracy == pytest.approx(float(accuracy), abs=1e-4)
        assert score.perplexity == pytest.approx(math.exp(score.nats_per_token))
    assert released.shares_K == pytest.approx([17 / 50, 17 / 50, 16 / 50, 0], abs=1e-4)


def test_what_is_gained_is_each_units_own_difference() -> None:
    base, fitted = scores(50), scores(50, seed=1)
    released = made([base, fitted])
    assert released.gain is not None
    differences = base.nats_U / base.tokens_U - fitted.nats_U / fitted.tokens_U
    nats = float(differences.clamp(-GAIN_BOUND, GAIN_BOUND).mean())
    assert released.gain.nats_per_token == pytest.approx(nats, abs=1e-4)
    hits = fitted.correct_U / fitted.tokens_U - base.correct_U / base.tokens_U
    bound = ACCURACY_GAIN_BOUND
    assert released.gain.token_accuracy == pytest.approx(
        float(hits.clamp(-bound, bound).mean()), abs=1e-4
    )
    first, second = released.scores
    assert second.nats_per_token == pytest.approx(first.nats_per_token - nats, abs=1e-4)
    assert made([base]).gain is None


@pytest.mark.parametrize("declared_units", [None, 50])
def test_the_share_of_pairs_is_each_units_own(declared_units: int | None) -> None:
    both = [scores(40), scores(40, seed=1)]
    shares = torch.tensor([1.0, 0.5, 0.0, 1.0] * 10)
    released = release(
        both,
        None,
        0,
        loss_bound=6.0,
        noise_multiplier=SILENT,
        stream=SecureStream(KEY),
        declared_units=declared_units,
        preferred_U=shares,
    )
    assert released.preferences is not None
    assert released.preferences.accuracy == pytest.approx(0.625, abs=1e-4)
    plan = plan_evaluation(
        declared_units or 40, 1, 1e-6, SILENT, counted=declared_units is not None, pairs=True
    )
    # A quotient of two noised sums is less exact than the plan's, which is of a figure near zero.
    assert plan.preferred_std is not None
    assert 0.9 * plan.preferred_std < released.preferences.accuracy_std < 2 * plan.preferred_std
    assert made(both).preferences is None


@pytest.mark.parametrize("declared_units", [None, 400])
def test_what_is_gained_is_told_far_more_exactly_than_by_two_figures(
    declared_units: int | None,
) -> None:
    """And as exactly as the plan says, whatever the seed."""
    noise = 8.0
    base = scores(400)
    fitted = UnitScores(base.nats_U - 0.4 * base.tokens_U, base.tokens_U, base.correct_U)
    found = [
        release(
            [base, fitted],
            None,
            0,
            loss_bound=math.log(49152),
            noise_multiplier=noise,
            stream=SecureStream(key(number)),
            declared_units=declared_units,
        )
        for number in range(200)
    ]
    gains = np.array([each.gain.nats_per_token for each in found if each.gain])
    planned = plan_evaluation(400, 1.0, 1e-6, noise, counted=declared_units is not None)
    stated = float(np.mean([each.gain.nats_std for each in found if each.gain]))
    assert stated == pytest.approx(planned.gain_std, rel=0.1)
    assert gains.std() == pytest.approx(stated, rel=0.2)
    assert gains.mean() == pytest.approx(0.4, abs=5 * stated / math.sqrt(200))
    # As it was: two figures, each of a row of four (five) that weigh the same.
    rows = math.sqrt(4 if declared_units is None else 5)
    before = math.sqrt(2) * rows * noise / 400 * math.log(49152) / 2
    assert stated < before / 3
    assert found[0].scores[0].nats_std < 1.05 * before / math.sqrt(2)


def test_event_is_one_gaussian_for_all_figures() -> None:
    assert made([scores(9)], torch.zeros(9, dtype=torch.int64), 1.5).dp_event == GaussianDpEvent(
        1.5
    )


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("compared", [False, True])
def test_rows_stay_below_the_clip_norm(
    compared: bool, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut off by the mechanism's clip, so the mean is that of the bounded figures."""
    seen: list[tuple[torch.Tensor, float]] = []
    real = module.GaussianStatistic

    class Spy(real):  # type: ignore[misc, valid-type]
        def release(self, values_UK: torch.Tensor, stream: SecureStream) -> object:
            seen.append((values_UK, self.l2_clip_norm))
            return real.release(self, values_UK, stream)

    monkeypatch.setattr(module, "GaussianStatistic", Spy)
    wild = UnitScores(torch.tensor([1e9, 0.0]), torch.tensor([1, 5]), torch.tensor([1, 0]))
    release(
        [wild, wild],
        torch.tensor([0, 3]) if compared else None,
        4,
        loss_bound=6.0,
        noise_multiplier=SILENT,
        stream=SecureStream(KEY),
        preferred_U=torch.tensor([7.0, -3.0]) if pairs else None,
    )
    ((rows, clip),) = seen
    assert float(rows.norm(dim=1).max()) <= clip * (1 + 1e-12)
    assert clip == RowWeights.of(paired=True, counted=False, pairs=pairs).norm(clusters=compared)


def test_units_without_tokens_count_as_zero() -> None:
    empty = UnitScores(torch.tensor([0.0, 6.0]), torch.tensor([0, 2]), torch.tensor([0, 2]))
    released = made([empty])
    assert math.isfinite(released.scores[0].nats_per_token)
    # The mean of the middle of the range, and of 3 nats or all hits.
    assert released.scores[0].nats_per_token == pytest.approx(3.0, abs=1e-4)
    assert released.scores[0].token_accuracy == pytest.approx(0.75, abs=1e-4)


def test_noise_is_stated_and_fresh_for_each_figure() -> None:
    released = made([scores(10), scores(10)], noise=2.0)
    weights = RowWeights.of(paired=True, counted=False)
    row = 2.0 * weights.norm(clusters=False) / 10
    assert released.scores[0].accuracy_std == pytest.approx(row / weights.accuracy / 2)
    assert released.scores[0].nats_std == pytest.approx(6.0 * row / weights.nats / 2)
    assert released.gain is not None
    assert released.gain.nats_std == pytest.approx(GAIN_BOUND * row / weights.gain)
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
    assert clips == [pytest.approx(math.sqrt(2.25))]


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
