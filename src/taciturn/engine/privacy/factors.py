"""Per-unit gradients of a matrix kept as factors: exact norms and sums without instantiating them.

All products of factors are float64, so that what rounds in them is far below the clip norm whoever
else is in the sum. Factors whose sum cancels lose digits all the same: `uncancelled_norms` and
`relative_error` bound how many.

Shapes: B sequences, R rows of a sequence, U units, G units of a group, N rows of a unit, P output
features or rows of a table, D input features, X of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from taciturn.engine.privacy.layout import BatchLayout, UnitGroup

# Rows of a Gram matrix made at once.
_TILE = 512
# Entries of a copy or of Gram matrices in float64 at once: 256 MiB, whatever units, tokens and
# features there are. Which are made together follows from shapes alone.
_ENTRIES = 1 << 25
_ROUNDING = 2.0**-52


@dataclass(frozen=True, slots=True)
class Factors:
    """One use of a matrix: sequence b adds sum over rows r of left[b, r] right[b, r]^T.

    Attributes:
        left: output gradients [B, R, P]; or table rows looked up, int64 [B, R], for an embedding.
        right_BRD: activations; for an embedding, output gradients.
    """

    left: Tensor
    right_BRD: Tensor


@dataclass(frozen=True, slots=True)
class FactoredGradients:
    """Unit u's gradient of a [P, D] matrix: the sum over its sequences and over `terms`. Private.

    Several terms are several uses of one matrix, as by an embedding tied to the head; their cross
    terms are part of the norm.

    Attributes:
        terms: at least one.
        layout: which sequences belong to which unit.
        shape: (P, D).
    """

    terms: tuple[Factors, ...]
    layout: BatchLayout
    shape: tuple[int, int]

    def squared_norms(self) -> Tensor:
        """Squared l2 norm of each unit's gradient; float64 [U].

        Relative to `uncancelled_norms` squared it is off by at most `relative_error`.
        """
        return _squared_norms([self])

    def uncancelled_norms(self) -> Tensor:
        """What each unit's norm would be if all its rows pointed one way; float64 [U].

        The sum over terms and rows of |left| |right|: by the triangle inequality, no norm is
        larger.
        """
        sums_B = sum(
            (_row_norms(each.left) * _row_norms(each.right_BRD)).sum(1) for each in self.terms
        )
        assert isinstance(sums_B, Tensor)
        return self.layout.sums(sums_B.view(-1, 1, 1))[:, 0]

    @property
    def relative_error(self) -> float:
        """Bound on the rounding of squared norms, relative to uncancelled norms squared.

        Inner products of P and of D numbers and sums of N^2 of them, all in float64 (Higham 2002,
        section 3.1).
        """
        rows = self.layout.rows_per_unit * len(self.terms)
        return _ROUNDING * (sum(self.shape) + rows)

    def weighted_sum(self, scale_U: Tensor, total_PD: Tensor | None = None) -> Tensor:
        """sum over u of scale[u] * gradient[u], float64 [P, D].

        A unit with scale zero is left out even if its rows are not finite.

        Args:
            total_PD: what it is added to, in place; each entry is rounded once. None: zeros.
        """
        rounds_once = len(self.terms) == 1 and self.terms[0].left.dtype == torch.int64
        if total_PD is not None and not rounds_once:
            return total_PD.add_(self.weighted_sum(scale_U))
        scale_B = self.layout.of_sequences(scale_U).double()
        total_PD = self._zeros() if total_PD is None else total_PD
        for term in self.terms:
            self._add_weighted(term, scale_B, total_PD)
        return total_PD

    def _add_weighted(self, term: Factors, scale_B: Tensor, total_PD: Tensor) -> None:
        dropped_B = scale_B == 0
        for some in _slices(term.right_BRD.shape[2], term.right_BRD.shape[:2].numel()):
            right_BRX = term.right_BRD[..., some].double() * scale_B.view(-1, 1, 1)
            right_NX = _kept(right_BRX, dropped_B)
            if term.left.dtype == torch.int64:
                _add_rows(total_PD[:, some], term.left.flatten(), right_NX)
                continue
            for rows in _slices(term.left.shape[2], len(right_NX)):
                left_NX = _kept(term.left[..., rows].double(), dropped_B)
                total_PD[rows, some].addmm_(left_NX.T, right_NX)

    def _zeros(self) -> Tensor:
        device = self.terms[0].right_BRD.device
        return torch.zeros(self.shape, dtype=torch.float64, device=device)

    def dense(self) -> Tensor:
        """The gradients themselves, [U, P, D]: what the factors stand for."""
        total_UPD: Tensor | None = None
        for term in self.terms:
            part = self._dense(term)
            total_UPD = part if total_UPD is None else total_UPD.add_(part)
        assert total_UPD is not None
        return total_UPD

    def _dense(self, term: Factors) -> Tensor:
        if term.left.dtype == torch.int64:
            return self.layout.lookups(term.left, term.right_BRD, self.shape[0])
        return self.layout.products(term.left, term.right_BRD)

    def _left_tiles(self, group: UnitGroup, units: slice) -> list[_Tile]:
        """All rows of some of a group's units."""
        return _tiles([each.left for each in self.terms], group, units)

    def _right_tiles(self, group: UnitGroup, units: slice) -> list[_Tile]:
        return _tiles([each.right_BRD for each in self.terms], group, units)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some rows of some units of a group. Nothing is copied until they are needed.

    Attributes:
        value: of all sequences, [B, R, X], or rows looked up, int64 [B, R].
        units: of the group's units.
        rows: of each unit's rows, side by side.
    """

    value: Tensor
    group: UnitGroup
    units: slice
    rows: slice

    @property
    def is_lookup(self) -> bool:
        return self.value.dtype == torch.int64

    def entries(self, features: slice = slice(None)) -> Tensor:
        """[G, N, X], or [G, N] of rows looked up."""
        value = self.value if self.is_lookup else self.value[..., features]
        group, per_sequence = self.group, value.shape[1]
        if group.whole:
            return group.rows(value)[self.units, self.rows]
        first_GK1 = group.sequences_GK[self.units].unsqueeze(2) * per_sequence
        row_GN = (first_GK1 + torch.arange(per_sequence, device=value.device)).flatten(1)
        return value.flatten(0, 1)[row_GN[:, self.rows]]


def _tiles(values: Sequence[Tensor], group: UnitGroup, units: slice) -> list[_Tile]:
    per_unit = group.sequences_GK.shape[1]
    return [
        _Tile(value, group, units, slice(start, start + _TILE))
        for value in values
        for start in range(0, per_unit * value.shape[1], _TILE)
    ]


def _slices(count: int, entries: int) -> Iterator[slice]:
    """Some of `count` at a time, each of which has `entries` entries."""
    width = max(1, _ENTRIES // max(1, entries))
    return (slice(start, min(count, start + width)) for start in range(0, count, width))


def squared_norms(gradients: Sequence[FactoredGradients]) -> Iterator[Tensor]:
    """Squared l2 norms of each unit's gradients, some matrices at a time; float64 [U] each.

    Their sum is the squared norm over all of them. |sum_n l_n r_n^T|^2 = sum_nm (l_n . l_m)(r_n .
    r_m), in tiles, in float64. Of matrices that meet the same activations r, as a query, key and
    value do, (l_n . l_m) are added up first, and (r_n . r_m) is made once.
    """
    together: dict[object, list[FactoredGradients]] = {}
    for each in gradients:
        together.setdefault(_activations(each), []).append(each)
    for some in together.values():
        yield some[0].squared_norms() if len(some) == 1 else _squared_norms(some)


def _activations(of: FactoredGradients) -> object:
    """Equal for matrices that meet the same activations, and nothing else.

    Compared by where they lie in memory, which they all occupy for as long as they are compared.
    """
    # A subclass has its own norms.
    if len(of.terms) > 1 or type(of) is not FactoredGradients:
        return id(of)
    right = of.terms[0].right_BRD
    return right.data_ptr(), right.shape, right.stride(), right.dtype, right.device


def _squared_norms(some: Sequence[FactoredGradients]) -> Tensor:
    """Of matrices with the same `_activations`, together."""
    first = some[0]
    squares_U = torch.zeros(
        first.layout.n_units, dtype=torch.float64, device=first.terms[0].right_BRD.device
    )
    for group in first.layout.groups:
        for units in _slices(len(group.units_G), max(_tile_entries(each, group) for each in some)):
            squares_U[group.units_G[units]] += _squares(some, group, units)
    # Rounding may leave a tiny negative number where a gradient is zero.
    return squares_U.clamp_(min=0.0)


def _squares(some: Sequence[FactoredGradients], group: UnitGroup, units: slice) -> Tensor:
    """Of some of a group's units, [G]; as `_squared_norms`."""
    # One row of tiles for each part of the activations, one column for each matrix.
    lefts = zip(*(each._left_tiles(group, units) for each in some), strict=True)
    tiles = list(zip(lefts, some[0]._right_tiles(group, units), strict=True))
    total_G: Tensor | float = 0.0
    for (ones, right), (others, other_right) in combinations_with_replacement(tiles, 2):
        gram = _left_gram(ones[0], others[0])
        for one, other in zip(ones[1:], others[1:], strict=True):
            gram = gram + _left_gram(one, other)
        gram = gram.mul_(_gram(right, other_right))
        twice = 1 if right is other_right else 2
        total_G = total_G + twice * gram.sum((1, 2), dtype=torch.float64)
    assert isinstance(total_G, Tensor)
    return total_G


def _tile_entries(of: FactoredGradients, group: UnitGroup) -> int:
    """Entries of one unit's tile. Where rows are looked up in others, those are copied whole."""
    rows = min(_TILE, group.sequences_GK.shape[1] * max(each.left.shape[1] for each in of.terms))
    is_lookup = {each.left.dtype == torch.int64 for each in of.terms}
    return rows * max(rows, of.shape[0] if len(is_lookup) > 1 else 0)


def _gram(one: _Tile, other: _Tile) -> Tensor:
    """Inner products of rows, [G, N, X] and [G, M, X] -> [G, N, M]; float64."""
    gram: Tensor | None = None
    rows = len(one.group.units_G[one.units]) * min(
        _TILE, one.group.sequences_GK.shape[1] * max(one.value.shape[1], other.value.shape[1])
    )
    for features in _slices(one.value.shape[2], rows):
        left_GNX = one.entries(features).double()
        right_GXM = other.entries(features).double().transpose(1, 2)
        gram = (
            torch.bmm(left_GNX, right_GXM) if gram is None else gram.baddbmm_(left_GNX, right_GXM)
        )
    assert gram is not None
    return gram


def _left_gram(one: _Tile, other: _Tile) -> Tensor:
    """As `_gram`, where looked-up rows stand for unit vectors."""
    if not one.is_lookup and not other.is_lookup:
        return _gram(one, other)
    if one.is_lookup and other.is_lookup:
        return (one.entries().unsqueeze(2) == other.entries().unsqueeze(1)).double()
    if one.is_lookup:
        other_GMX = other.entries()
        ids_GNM = one.entries().unsqueeze(2).expand(-1, -1, other_GMX.shape[1])
        return other_GMX.transpose(1, 2).gather(1, ids_GNM).double()
    return _left_gram(other, one).transpose(1, 2)


def _row_norms(value: Tensor) -> Tensor:
    """Norm of each row, float64 [B, R]; a looked-up row stands for a unit vector."""
    if value.dtype == torch.int64:
        return torch.ones(value.shape, dtype=torch.float64, device=value.device)
    value_NX = value.flatten(0, 1)
    parts = [
        torch.linalg.vector_norm(value_NX[rows], dim=-1, dtype=torch.float64)
        for rows in _slices(len(value_NX), value.shape[2])
    ]
    return torch.cat(parts).view(value.shape[:2])


def _add_rows(total_PX: Tensor, ids_N: Tensor, rows_NX: Tensor) -> None:
    """Add each row to the one it names. Rows of one name are added up first, at one of their own
    places, the others' being zero: so the total is rounded once, however many there are."""
    place_P = ids_N.new_empty(len(total_PX))
    place_P[ids_N] = torch.arange(len(ids_N), device=ids_N.device)
    sums_NX = torch.zeros_like(rows_NX).index_add_(0, place_P[ids_N], rows_NX)
    total_PX.index_add_(0, ids_N, sums_NX)


def _kept(value_BRX: Tensor, dropped_B: Tensor) -> Tensor:
    """Rows of the units that count, the others zero: zero times NaN would be NaN; [B * R, X]."""
    return value_BRX.masked_fill(dropped_B.view(-1, 1, 1), 0.0).flatten(0, 1)
