"""One object owns sampling, clipping, noise and the event: what is accounted is what was run."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import dp_accounting
import pytest
import torch

from taciturn.engine.privacy.clipping import clip_and_sum
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import PerUnitGradients
from taciturn.errors import GuaranteeError

PARAMETERS = {"w": torch.zeros(3, 2), "b": torch.zeros(4)}


def mechanism(**changes: Any) -> DpSgdMechanism:
    arguments: dict[str, Any] = {
        "n_units": 100,
        "expected_batch_size": 25,
        "steps": 7,
        "noise_multiplier": 1.5,
        "l2_clip_norm": 0.5,
        "parameter_names": ("w", "b"),
    }
    return DpSgdMechanism(**arguments | changes)


def gradients(n_units: int, names: tuple[str, ...] = ("w", "b")) -> PerUnitGradients:
    generator = torch.Generator().manual_seed(n_units)
    values = {
        name: torch.randn(n_units, *PARAMETERS[name].shape, generator=generator) for name in names
    }
    return PerUnitGradients(values, torch.zeros(n_units))


def test_event_is_what_is_run() -> None:
    event = mechanism().dp_event
    assert event == dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(1.5)), 7
    )


def test_samples_with_the_probability_that_is_accounted() -> None:
    stream = SecureStream(bytes(32))
    sizes = [len(mechanism().sample(stream, 100)) for _ in range(400)]
    assert sum(sizes) / 400 == pytest.approx(25, abs=1)


def test_noise_has_the_scale_that_is_accounted() -> None:
    """Noise over sensitivity is the multiplier of the event; the divisor is public."""
    made = mechanism()
    total = made.clip_and_sum(PARAMETERS, [gradients(3)])
    released = made.add_noise(total, SecureStream.fresh())
    assert released.noise_std == 1.5 * total.l2_sensitivity / 25


def test_divides_by_the_expected_batch_size_whatever_was_drawn() -> None:
    """The realised size is private: a division by it would release it without noise."""
    made = mechanism(noise_multiplier=1e-9)
    for n_units in (1, 3, 40):
        total = made.clip_and_sum(PARAMETERS, [gradients(n_units)])
        released = made.add_noise(total, SecureStream.fresh())
        torch.testing.assert_close(
            released.values["w"].double(), total.values["w"] / 25, rtol=1e-5, atol=1e-7
        )


def test_empty_draw_is_pure_noise() -> None:
    """Neither skipped nor filled with a made-up record, which would double the sensitivity."""
    made = mechanism()
    total = made.clip_and_sum(PARAMETERS, [])
    assert not any(value.any() for value in total.values.values())
    released = made.add_noise(total, SecureStream.fresh())
    assert {name: value.shape for name, value in released.values.items()} == {
        name: value.shape for name, value in PARAMETERS.items()
    }
    assert all(value.any() for value in released.values.values())


def test_sums_over_microbatches() -> None:
    made = mechanism()
    parts = [gradients(3), gradients(2), gradients(5)]
    total = made.clip_and_sum(PARAMETERS, iter(parts))
    expected = sum(clip_and_sum(part, 0.5).values["b"] for part in parts)
    torch.testing.assert_close(total.values["b"], expected)
    assert total.l2_sensitivity == 0.5
    assert total.counts.n_units == 10


def test_a_microbatch_is_forgotten_before_the_next_one_is_made() -> None:
    """Per-unit gradients are most of a step's memory: of two microbatches they must not meet."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def made() -> Iterator[PerUnitGradients]:
        for count in (2, 3, 4):
            assert not any(each() is not None for each in alive)
            some = gradients(count)
            alive.extend(weakref.ref(value) for value in some.dense().values())
            yield some
            del some

    mechanism().clip_and_sum(PARAMETERS, made())
    assert len(alive) == 6


def test_trainable_parameters_cannot_change_during_a_run() -> None:
    """A module frozen or unfrozen in mid-run would be left out of clipping and noise."""
    made = mechanism()
    with pytest.raises(GuaranteeError, match="b"):
        made.clip_and_sum({"w": PARAMETERS["w"]}, [])
    with pytest.raises(GuaranteeError, match="order"):
        made.clip_and_sum(dict(reversed(PARAMETERS.items())), [])
    with pytest.raises(GuaranteeError, match="b"):
        made.clip_and_sum(PARAMETERS, [gradients(2, ("w",))])
    with pytest.raises(GuaranteeError, match="b"):
        made.add_noise(clip_and_sum(gradients(2, ("w",)), 0.5), SecureStream.fresh())


def test_sum_clipped_to_another_norm_is_refused() -> None:
    with pytest.raises(GuaranteeError, match=r"0\.25.*0\.5"):
        mechanism().add_noise(clip_and_sum(gradients(2), 0.25), SecureStream.fresh())


@pytest.mark.parametrize(
    "changes",
    [
        {"expected_batch_size": 101},
        {"expected_batch_size": 0},
        {"steps": 0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"l2_clip_norm": 0.0},
        {"parameter_names": ()},
    ],
)
def test_cannot_be_made_without_a_guarantee(changes: dict[str, Any]) -> None:
    with pytest.raises(GuaranteeError):
        mechanism(**changes)


def test_is_immutable() -> None:
    with pytest.raises(AttributeError):
        mechanism().noise_multiplier = 0.1  # type: ignore[misc]
