"""Gradients kept as factors: norms and sums equal those of the instantiated gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taciturn.engine.privacy import factors
from taciturn.engine.privacy.clipping import clip_and_sum, unit_norms
from taciturn.engine.privacy.factors import FactoredGradients, Factors, squared_norms
from taciturn.engine.privacy.layout import BatchLayout
from taciturn.engine.privacy.types import ClipCounts, PerUnitGradients
from taciturn.engine.training.memory import LiveBytes

P, D = 7, 5

units_of_sequences = st.lists(st.integers(0, 3), min_size=1, max_size=7)


def layout(units: list[int], tokens: int) -> BatchLayout:
    return BatchLayout.of(tokens, max(units) + 1, torch.tensor(units))


def gradients(
    units: list[int],
    tokens: int = 4,
    *,
    uses: tuple[str, ...] = ("matrix",),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> FactoredGradients:
    """Random factors: of a matrix, a table, or of both when they are tied."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for use in uses:
        shape = (len(units), tokens)
        left: Tensor = torch.randn(*shape, P, generator=generator, dtype=torch.float64).to(dtype)
        if use == "table":
            left = torch.randint(P, shape, generator=generator)
        right = torch.randn(*shape, D, generator=generator, dtype=torch.float64).to(dtype)
        terms.append(Factors(left, right))
    return FactoredGradients(tuple(terms), layout(units, tokens), (P, D))


USES = [("matrix",), ("table",), ("table", "matrix"), ("matrix", "matrix")]


@settings(max_examples=25)
@given(units=units_of_sequences, tokens=st.integers(1, 6), uses=st.sampled_from(USES))
def test_equals_the_definition(units: list[int], tokens: int, uses: tuple[str, ...]) -> None:
    of = gradients(units, tokens, uses=uses)
    expected = torch.zeros(max(units) + 1, P, D, dtype=torch.float64)
    for term in of.terms:
        left = term.left
        rows = torch.eye(P, dtype=torch.float64)[left] if left.dtype == torch.int64 else left
        each_BPD = torch.einsum("brp,brd->bpd", rows, term.right_BRD)
        expected.index_add_(0, torch.tensor(units), each_BPD)
    torch.testing.assert_close(of.dense(), expected)
    torch.testing.assert_close(of.squared_norms(), expected.square().sum((1, 2)))
    scale = torch.linspace(0.1, 1, len(expected), dtype=torch.float64)
    sum_PD = (scale.view(-1, 1, 1) * expected).sum(0)
    torch.testing.assert_close(of.weighted_sum(scale), sum_PD)
    total_PD = torch.ones_like(sum_PD)
    assert of.weighted_sum(scale, total_PD) is total_PD
    torch.testing.assert_close(total_PD, sum_PD + 1)


@pytest.mark.parametrize("uses", [*USES, ("table", "table")])
def test_a_total_is_rounded_once(uses: tuple[str, ...]) -> None:
    """Row by row, each of a hundred ones would be rounded away beside 2^54."""
    ones = torch.ones(3, 100, D, dtype=torch.float64)
    lefts = {
        "matrix": torch.eye(P, dtype=torch.float64)[2].expand(3, 100, P),
        "table": torch.full((3, 100), 2),
    }
    terms = tuple(Factors(lefts[use], ones) for use in uses)
    total_PD = torch.full((P, D), 2.0**54, dtype=torch.float64)
    of = FactoredGradients(terms, layout([0, 1, 1], 100), (P, D))
    of.weighted_sum(torch.ones(2, dtype=torch.float64), total_PD)
    assert (total_PD[2] - 2.0**54 == 300 * len(uses)).all()
    assert (total_PD - 2.0**54).count_nonzero() == D


@pytest.mark.parametrize("uses", USES)
@pytest.mark.parametrize("tile", [1, 3, 64])
def test_tiles_change_nothing(
    uses: tuple[str, ...], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = gradients([0, 0, 1, 2, 2, 2], tokens=5, uses=uses)
    whole = of.squared_norms()
    monkeypatch.setattr(factors, "_TILE", tile)
    torch.testing.assert_close(of.squared_norms(), whole)


def test_sequences_of_a_unit_need_not_be_side_by_side() -> None:
    apart, together = gradients([0, 1, 0, 1]), gradients([0, 0, 1, 1])
    order = [0, 2, 1, 3]
    term = apart.terms[0]
    moved = Factors(term.left[order], term.right_BRD[order])
    same = FactoredGradients((moved,), together.layout, (P, D))
    torch.testing.assert_close(same.squared_norms(), apart.squared_norms())


def test_opposite_uses_cancel() -> None:
    """The cross terms of two uses count: here they take everything away."""
    (term,) = gradients([0, 1]).terms
    minus = Factors(term.left, -term.right_BRD)
    of = FactoredGradients((term, minus), layout([0, 1], 4), (P, D))
    assert of.squared_norms().max() < 1e-12
    assert (of.squared_norms() >= 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right_BRD"])
def test_unit_that_is_not_finite_contributes_zero(bad: float, side: str) -> None:
    of = gradients([0, 1, 2], dtype=torch.float32)
    getattr(of.terms[0], side)[1, 2, 3] = bad
    total = clip_and_sum(PerUnitGradients({"w": of}, torch.zeros(3)), 1.0)
    others = BatchLayout.of(4, 2, torch.tensor([0, 1]))
    kept = Factors(of.terms[0].left[[0, 2]], of.terms[0].right_BRD[[0, 2]])
    rest = FactoredGradients((kept,), others, (P, D))
    expected = clip_and_sum(PerUnitGradients({"w": rest}, torch.zeros(2)), 1.0)
    assert total.counts.n_non_finite == 1
    torch.testing.assert_close(total.values["w"], expected.values["w"], rtol=1e-6, atol=1e-7)


def test_norms_of_bf16_factors_are_made_in_high_precision() -> None:
    of = gradients([0, 1, 1], tokens=64, dtype=torch.bfloat16)
    exact = gradients([0, 1, 1], tokens=64)
    rounded = Factors(*(getattr(of.terms[0], side).double() for side in ("left", "right_BRD")))
    expected = FactoredGradients((rounded,), exact.layout, (P, D)).squared_norms()
    torch.testing.assert_close(of.squared_norms(), expected, rtol=1e-6, atol=0)
    assert of.weighted_sum(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


@settings(max_examples=50)
@given(
    units=units_of_sequences,
    uses=st.sampled_from(USES),
    clip=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_sensitivity(
    units: list[int], uses: tuple[str, ...], clip: float, seed: int, data: st.DataObject
) -> None:
    """Dropping a unit moves the sum by at most C, although the sum is one product."""
    of = gradients(units, uses=uses, seed=seed, dtype=torch.float32)
    dropped = data.draw(st.sampled_from(units))
    moved = clipped(of, clip) - clipped(without(of, units, dropped), clip)
    assert float(moved.norm()) <= clip * (1 + 1e-6)


def clipped(of: FactoredGradients | None, clip: float) -> Tensor:
    if of is None:
        return torch.zeros(P, D, dtype=torch.float64)
    losses_U = torch.zeros(of.layout.n_units)
    return clip_and_sum(PerUnitGradients({"w": of}, losses_U), clip).values["w"]


def without(of: FactoredGradients, units: list[int], dropped: int) -> FactoredGradients | None:
    kept = [row for row, unit in enumerate(units) if unit != dropped]
    if not kept:
        return None
    names = sorted({units[row] for row in kept})
    terms = tuple(Factors(term.left[kept], term.right_BRD[kept]) for term in of.terms)
    left = [names.index(units[row]) for row in kept]
    return FactoredGradients(terms, layout(left, of.layout.tokens), (P, D))


def test_norm_is_over_factors_and_dense_parameters_together() -> None:
    of, other = gradients([0, 1]), torch.randn(2, 3, dtype=torch.float64)
    both = PerUnitGradients({"w": of, "b": other}, torch.zeros(2))
    expected = (of.squared_norms() + other.square().sum(1)).sqrt()
    torch.testing.assert_close(unit_norms(both), expected)


@settings(max_examples=25)
@given(
    units=units_of_sequences,
    tokens=st.integers(1, 6),
    tile=st.integers(1, 7),
    activations=st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
def test_matrices_that_share_activations_have_the_norm_they_have_alone(
    units: list[int], tokens: int, tile: int, activations: list[int]
) -> None:
    xs = [gradients(units, tokens, seed=100 + n).terms[0].right_BRD for n in range(3)]
    several = [
        # As autograd hands them over: each a tensor of its own in the same memory.
        FactoredGradients(
            (Factors(gradients(units, tokens, seed=n).terms[0].left, xs[which].detach()),),
            layout(units, tokens),
            (P, D),
        )
        for n, which in enumerate(activations)
    ]
    expected = sum(each.dense().square().sum((1, 2)) for each in several)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "_TILE", tile)
        found = list(squared_norms(several))
    assert len(found) == len(set(activations))
    torch.testing.assert_close(sum(found), expected)


def test_activations_that_lie_elsewhere_or_otherwise_are_not_shared() -> None:
    """Same memory, other strides; and same values, other memory."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    rights = (square, square.transpose(1, 2), square.clone(), square[:, :4], square[:, 1:])
    several = [
        FactoredGradients(
            (Factors(torch.randn(*right.shape, generator=generator, dtype=torch.float64), right),),
            layout([0, 1, 2], right.shape[1]),
            (5, 5),
        )
        for right in rights
    ]
    found = list(squared_norms(several))
    assert len(found) == len(several)
    expected = sum(each.dense().square().sum((1, 2)) for each in several)
    torch.testing.assert_close(sum(found), expected)


def test_tied_uses_are_not_shared_with_others() -> None:
    """Their cross terms are theirs alone."""
    tied = gradients([0, 1], uses=("matrix", "matrix"))
    alone = FactoredGradients((tied.terms[0],), tied.layout, tied.shape)
    expected = sum(each.dense().square().sum((1, 2)) for each in (tied, alone, tied))
    torch.testing.assert_close(sum(squared_norms([tied, alone, tied])), expected)


def cancelling(fold: float, seed: int = 0) -> tuple[FactoredGradients, Tensor]:
    """Unit 0's rows cancel `fold`-fold; unit 1's do not. With the norm of unit 0, by definition.

    Pairs of rows with opposite factors, and what is left over: 1 / fold of one of them.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(2, 64, width, generator=generator) for width in (P, D))
    left[0, 32:], right[0, 32:] = left[0, :32], -right[0, :32]
    right[0, 0] *= 1 + 64 / fold
    of = FactoredGradients((Factors(left, right),), layout([0, 1], 64), (P, D))
    exact_PD = left[0].double().T @ right[0].double()
    return of, exact_PD.norm()


@pytest.mark.parametrize("fold", [1e2, 1e3, 1e4])
def test_norms_hold_where_rows_cancel(fold: float) -> None:
    """Gram matrices in fp32 would say 1.0018 C at a thousand-fold, and nothing at all beyond."""
    of, norm = cancelling(fold)
    gradients = PerUnitGradients({"w": of}, torch.zeros(2))
    torch.testing.assert_close(unit_norms(gradients)[0], norm, rtol=2e-6, atol=0)
    assert float(of.uncancelled_norms()[0]) > fold / 100 * float(norm)
    clip = float(norm) / 7
    moved = clipped(of, clip) - clipped(without(of, [0, 1], 0), clip)
    assert clip * (1 - 2e-4) < float(moved.norm()) <= clip


@pytest.mark.parametrize("fold", [1e5, 1e9, float("inf")])
def test_where_rows_cancel_further_the_unit_is_left_to_be_computed_again(fold: float) -> None:
    """It adds nothing and is not counted, and nobody else is touched."""
    of, norm = cancelling(fold)
    gradients = PerUnitGradients({"w": of}, torch.zeros(2))
    assert torch.isinf(unit_norms(gradients)).tolist() == [True, False]
    clip = max(float(norm), 1e-3) / 7
    total = clip_and_sum(gradients, clip)
    assert torch.equal(total.values["w"], clipped(without(of, [0, 1], 0), clip))
    counts, outstanding = total.tally.read()
    assert outstanding == [[0]]
    assert (counts.n_units, counts.n_clipped, counts.n_non_finite) == (1, 1, 0)


def test_nan_is_not_finite_rather_than_outstanding() -> None:
    of, _ = cancelling(1e9)
    of.terms[0].left[0, 0, 0] = float("nan")
    counts, outstanding = clip_and_sum(
        PerUnitGradients({"w": of}, torch.zeros(2)), 1.0
    ).tally.read()
    assert (counts.n_units, counts.n_non_finite, outstanding) == (2, 1, [[]])


def test_fillers_are_neither_counted_nor_outstanding() -> None:
    of, _ = cancelling(1e9)
    of.terms[0].right_BRD[1] = 0.0
    total = clip_and_sum(PerUnitGradients({"w": of}, torch.zeros(2), n_fillers=1), 1.0)
    assert total.tally.read() == (ClipCounts(), [[0]])


def wide(units: list[int], tokens: int, shape: tuple[int, int], table: bool) -> FactoredGradients:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(len(units), tokens, shape[0], generator=generator)
    terms = [Factors(left, torch.randn(len(units), tokens, shape[1], generator=generator))]
    if table:
        ids = torch.randint(shape[0], (len(units), tokens), generator=generator)
        terms.append(Factors(ids, torch.randn(len(units), tokens, shape[1], generator=generator)))
    return FactoredGradients(tuple(terms), layout(units, tokens), shape)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 2, 1, 2, 3, 3], [0] * 8])
@pytest.mark.parametrize("shape", [(1200, 24), (24, 1200)])
def test_memory_is_bounded_whatever_units_tokens_and_features(
    shape: tuple[int, int], units: list[int], table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,096 tokens and 256k words, scaled down: tiles of 8 rows, copies of 2^11 entries.

    In float64 the factors alone would be 2 MB.
    """
    of = wide(units, 24, shape, table)
    scale_U = torch.linspace(0.1, 1, max(units) + 1, dtype=torch.float64)
    expected = of.squared_norms(), of.uncancelled_norms(), of.weighted_sum(scale_U)
    entries = 1 << 11
    monkeypatch.setattr(factors, "_TILE", 8)
    monkeypatch.setattr(factors, "_ENTRIES", entries)
    most, result = 8 * entries * 8, 8 * 1200 * 24
    existing = [value for term in of.terms for value in (term.left, term.right_BRD)]
    with LiveBytes(existing) as live:
        made = of.squared_norms(), of.uncancelled_norms()
    assert live.peak < most
    with LiveBytes(existing) as live:
        made = *made, of.weighted_sum(scale_U)
    assert live.peak < most + result
    for own, other in zip(made, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)
