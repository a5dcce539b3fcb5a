"""Clip and sum: no unit moves the sum by more than the norm, whatever stands beside it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taciturn.engine.privacy import clipping
from taciturn.engine.privacy.clipping import (
    ROUNDING,
    clip_and_sum,
    empty_sum,
    merge_disjoint,
    settle,
    unit_norms,
)
from taciturn.engine.privacy.factors import FactoredGradients, Factors
from taciturn.engine.privacy.layout import BatchLayout
from taciturn.engine.privacy.types import BoundedSum, PerUnitGradients, Tally
from taciturn.errors import GuaranteeError

SHAPES = {"a": (3, 4), "b": (5,), "c": ()}


def gradients(n_units: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: (torch.randn(n_units, *shape, generator=generator) * scale).to(dtype)
        for name, shape in SHAPES.items()
    }
    return PerUnitGradients(values, torch.rand(n_units, generator=generator))


def flat(total: BoundedSum) -> Tensor:
    return torch.cat([value.flatten() for value in total.values.values()])


def without(of: PerUnitGradients, unit: int) -> PerUnitGradients:
    keep = [each for each in range(len(of.losses_U)) if each != unit]
    return PerUnitGradients({k: v[keep] for k, v in of.values.items()}, of.losses_U[keep])


def test_norm_is_over_all_parameters_together() -> None:
    of = gradients(4)
    for unit, norm in enumerate(unit_norms(of).tolist()):
        parts = [float(value[unit].double().norm()) for value in of.values.values()]
        assert norm == pytest.approx(math.hypot(*parts), rel=1e-12)


def test_sum_of_clipped_gradients() -> None:
    of = gradients(6, scale=0.4)
    norms = unit_norms(of)
    total = clip_and_sum(of, l2_clip_norm=1.5)
    most = 1.5 / (1 + ROUNDING)
    for name, value in of.values.items():
        expected = sum(value[u].double() * min(1.0, most / float(norms[u])) for u in range(6))
        torch.testing.assert_close(total.values[name], expected, rtol=1e-12, atol=1e-12)
    assert total.l2_sensitivity == 1.5
    assert total.counts.n_units == 6
    assert total.counts.n_clipped == int((norms > 1.5).sum())
    assert total.counts.norm_sum == pytest.approx(float(norms.sum()))


@given(
    n_units=st.integers(1, 12),
    clip=st.floats(1e-6, 1e6),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    data=st.data(),
)
def test_sensitivity(
    n_units: int, clip: float, scale: float, seed: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    of = gradients(n_units, seed, scale, dtype)
    unit = data.draw(st.integers(0, n_units - 1))
    moved = flat(clip_and_sum(of, clip)) - flat(clip_and_sum(without(of, unit), clip))
    assert float(moved.norm()) <= clip * (1 + 1e-6)


@given(clip=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_short_gradients_are_left_alone(clip: float, seed: int) -> None:
    of = gradients(3, seed)
    scale = 0.999 * clip / float(unit_norms(of).max())
    small = PerUnitGradients({k: v.double() * scale for k, v in of.values.items()}, of.losses_U)
    total = clip_and_sum(small, clip)
    for name, value in small.values.items():
        torch.testing.assert_close(total.values[name], value.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [("a", 0), ("c", None)])
def test_unit_that_is_not_finite_contributes_zero(bad: float, where: tuple[str, int]) -> None:
    """One NaN must not make the whole sum NaN, and the step goes on."""
    of = gradients(5)
    name, index = where
    if index is None:
        of.values[name][3] = bad
    else:
        of.values[name][3].view(-1)[index] = bad
    total, rest = clip_and_sum(of, 1.0), clip_and_sum(without(of, 3), 1.0)
    torch.testing.assert_close(flat(total), flat(rest), rtol=1e-12, atol=1e-14)
    assert total.counts.n_non_finite == 1
    assert total.counts.n_units == 5
    assert math.isfinite(total.counts.norm_sum + total.counts.loss_sum)


def test_all_units_not_finite() -> None:
    of = PerUnitGradients({"w": torch.full((3, 2), float("nan"))}, torch.zeros(3))
    total = clip_and_sum(of, 1.0)
    assert not flat(total).any()
    assert total.counts.n_non_finite == 3


def test_norm_that_overflows_fp32_is_clipped_like_any_other() -> None:
    of = PerUnitGradients({"w": torch.full((1, 4), 3e38)}, torch.zeros(1))
    assert float(flat(clip_and_sum(of, 1.0)).norm()) == pytest.approx(1 / (1 + ROUNDING))


def test_zero_gradient_stays_zero() -> None:
    of = PerUnitGradients({"w": torch.zeros(2, 4)}, torch.zeros(2))
    assert not flat(clip_and_sum(of, 1.0)).any()


def test_norms_of_bf16_are_made_in_high_precision() -> None:
    """Added up in bf16, a million equal entries stop growing, and the norm is too small."""
    entry = torch.tensor(0.01).bfloat16()
    of = PerUnitGradients({"w": entry.expand(1, 1 << 20).clone()}, torch.zeros(1))
    exact = float(entry.double()) * 1024
    assert float(unit_norms(of)) == pytest.approx(exact, rel=1e-9)
    clipped = float(flat(clip_and_sum(of, 1.0)).norm())
    assert clipped == pytest.approx(1 / (1 + ROUNDING), rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 30])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of = gradients(9)
    of.values["b"][2] = float("nan")
    whole = flat(clip_and_sum(of, 0.7))
    monkeypatch.setattr(clipping, "_CHUNK", chunk)
    torch.testing.assert_close(flat(clip_and_sum(of, 0.7)), whole, rtol=1e-13, atol=1e-13)


def test_gradients_are_not_changed() -> None:
    of = gradients(4)
    before = {name: value.clone() for name, value in of.values.items()}
    clip_and_sum(of, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in of.values.items())


@settings(max_examples=30)
@given(n_units=st.integers(1, 10), cuts=st.lists(st.integers(0, 10), max_size=4))
def test_any_split_gives_the_same_sum(n_units: int, cuts: list[int]) -> None:
    of = gradients(n_units)
    total, onto = (
        empty_sum({name: value[0] for name, value in of.values.items()}, 0.8) for _ in range(2)
    )
    edges = [0, *sorted(min(cut, n_units) for cut in cuts), n_units]
    for start, stop in itertools.pairwise(edges):
        part = PerUnitGradients(
            {k: v[start:stop] for k, v in of.values.items()}, of.losses_U[start:stop]
        )
        total = merge_disjoint(total, clip_and_sum(part, 0.8))
        onto = clip_and_sum(part, 0.8, onto)
    whole = clip_and_sum(of, 0.8)
    for found in (total, onto):
        torch.testing.assert_close(flat(found), flat(whole), rtol=1e-12, atol=1e-12)
        assert found.counts.n_units == n_units
        assert found.counts.n_clipped == whole.counts.n_clipped
        assert found.l2_sensitivity == whole.l2_sensitivity


@settings(max_examples=30)
@given(n_units=st.integers(2, 9), clip=st.floats(1e-3, 10), data=st.data())
def test_what_is_added_to_moves_by_at_most_the_clip_norm(
    n_units: int, clip: float, data: st.DataObject
) -> None:
    """With one unit less in the microbatch, and with all the same before it."""
    before, of = gradients(3), gradients(n_units)
    unit = data.draw(st.integers(0, n_units - 1))
    whole = clip_and_sum(of, clip, clip_and_sum(before, clip))
    rest = clip_and_sum(without(of, unit), clip, clip_and_sum(before, clip))
    assert float((flat(whole) - flat(rest)).norm()) <= clip
    assert whole.counts.n_units == rest.counts.n_units + 1 == n_units + 3


def test_sums_are_made_in_the_memory_of_the_total() -> None:
    """A unit that is not finite, and one of zeros, leave every bit of it as it was."""
    total = clip_and_sum(gradients(5), 0.4)
    places = {name: value.data_ptr() for name, value in total.values.items()}
    before = flat(total).clone()
    of = gradients(2)
    of.values["b"][0] = float("nan")
    for value in of.values.values():
        value[1] = 0.0
    onto = clip_and_sum(of, 0.4, total)
    assert {name: value.data_ptr() for name, value in onto.values.items()} == places
    assert torch.equal(flat(onto), before)
    assert (onto.counts.n_units, onto.counts.n_non_finite) == (7, 1)


def test_nothing_of_the_memory_that_a_sum_is_made_in_enters_it() -> None:
    """In its first microbatch a sum is written over whatever stands there, here NaN."""
    of, none = gradients(4), gradients(0)
    expected = flat(clip_and_sum(of, 0.7))
    torch.use_deterministic_algorithms(True)  # which fills memory as it comes with NaN
    try:
        assert torch.empty(3).isnan().all()
        assert torch.equal(flat(clip_and_sum(of, 0.7)), expected)
        assert torch.equal(flat(clip_and_sum(none, 0.7)), torch.zeros_like(expected))
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_kernels_and_factors_give_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what neither adds up: all three ways into one total."""
    layout = BatchLayout.of(3, 4, torch.arange(4))
    rows = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    kept = FactoredGradients((Factors(rows[0], rows[1]),), layout, (5, 5))
    of = PerUnitGradients({**gradients(4).values, "kept": kept}, torch.zeros(4))
    dense = torch.einsum("urp,urd->upd", *rows.double())
    other = PerUnitGradients({**gradients(4).values, "kept": dense}, torch.zeros(4))
    expected = merge_disjoint(clip_and_sum(other, 0.5), clip_and_sum(other, 0.5))
    kernels = clipping.kernels
    monkeypatch.setattr(kernels, "reduces", lambda value: value.ndim > 2)
    monkeypatch.setattr(
        kernels,
        "squared_norms",
        lambda values: sum(each.double().flatten(1).square().sum(1) for each in values),
    )
    monkeypatch.setattr(
        kernels,
        "weighted_sums",
        lambda values, scale_U: [torch.tensordot(scale_U, each.double(), 1) for each in values],
    )
    assert any(value.ndim > 2 for value in gradients(4).values.values())
    total = clip_and_sum(of, 0.5, clip_and_sum(of, 0.5))
    for name, value in expected.values.items():
        torch.testing.assert_close(total.values[name], value, rtol=1e-9, atol=1e-12)


def test_empty_sum_is_zero_in_the_parameters_shape() -> None:
    total = empty_sum({"w": torch.ones(2, 3), "b": torch.ones(())}, 1.5)
    assert {name: tuple(value.shape) for name, value in total.values.items()} == {
        "w": (2, 3),
        "b": (),
    }
    assert not flat(total).any()
    assert flat(total).dtype == torch.float64
    assert total.l2_sensitivity == 1.5
    assert total.counts.n_units == 0


def test_sums_that_do_not_belong_together_are_refused() -> None:
    one, other = clip_and_sum(gradients(2), 1.0), clip_and_sum(gradients(2), 2.0)
    with pytest.raises(ValueError, match="sensitivities"):
        merge_disjoint(one, other)
    shorter = PerUnitGradients({"a": gradients(2).values["a"]}, torch.zeros(2))
    with pytest.raises(ValueError, match="different parameters"):
        merge_disjoint(one, clip_and_sum(shorter, 1.0))
    before = flat(one).clone()
    with pytest.raises(ValueError, match="sensitivities"):
        clip_and_sum(gradients(2), 2.0, one)
    with pytest.raises(ValueError, match="different parameters"):
        clip_and_sum(shorter, 1.0, one)
    assert torch.equal(flat(one), before)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_clip_norm_must_be_positive_and_finite(clip: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        clip_and_sum(gradients(1), clip)
    with pytest.raises(ValueError, match="positive and finite"):
        empty_sum({"w": torch.zeros(2)}, clip)


def test_units_left_out_are_added_once_by_themselves() -> None:
    of, clip = gradients(3), 0.3
    alone = without(without(of, 2), 1)
    notes_5U = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    missing = replace(clip_and_sum(without(of, 0), clip), tally=Tally(unread=(notes_5U,)))
    places = []

    def again(units: list[list[int]]) -> list[PerUnitGradients]:
        places.extend(units)
        return [alone]

    total = settle(missing, again)
    assert places == [[0]]
    torch.testing.assert_close(flat(total), flat(clip_and_sum(of, clip)), rtol=1e-12, atol=1e-14)
    assert (total.l2_sensitivity, total.counts.n_units) == (clip, 1)


def test_exactly_the_units_left_out_are_computed_again() -> None:
    """One that is added twice would have twice its bound."""
    of = gradients(2)
    one = without(of, 1)
    notes_5U = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    missing = replace(clip_and_sum(of, 0.3), tally=Tally(unread=(notes_5U,)))
    for again in ([], [one, one], [of]):
        with pytest.raises(GuaranteeError, match="left out"):
            settle(missing, lambda _, some=again: some)
    with pytest.raises(GuaranteeError, match="left out"):
        settle(clip_and_sum(of, 0.3), lambda _: [one])
