"""Per-unit gradients of a matrix kept as factors: exact norms and sums without instantiating them.

All products of factors are float64, so that what rounds in them is far below the clip norm whoever
else is in the sum. Factors whose sum cancels lose digits all the same: `uncancelled_norms` and
`relative_error` bound how many.

Shapes: B sequences, R rows of a sequence, U units, G units of a group, N rows of a unit, P output
features or rows of a table, D input features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from taciturn.engine.privacy.layout import BatchLayout, UnitGroup

# Rows of a Gram matrix made at once: bounds its memory, whatever the context length.
_TILE = 512
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

    def weighted_sum(self, scale_U: Tensor) -> Tensor:
        """sum over u of scale[u] * gradient[u], float64 [P, D].

        A unit with scale zero is left out even if its rows are not finite.
        """
        scale_B = self.layout.of_sequences(scale_U).double()
        dropped_B = scale_B == 0
        total_PD, *others = (self._weighted(term, scale_B, dropped_B) for term in self.terms)
        for part_PD in others:
            total_PD += part_PD
        return total_PD

    def _weighted(self, term: Factors, scale_B: Tensor, dropped_B: Tensor) -> Tensor:
        right_BRD = term.right_BRD.double() * scale_B.view(-1, 1, 1)
        right_ND = _kept(right_BRD, dropped_B)
        if term.left.dtype != torch.int64:
            return _kept(term.left.double(), dropped_B).T @ right_ND
        return self._zeros().index_add_(0, term.left.flatten(), right_ND)

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

    def _left_tiles(self, group: UnitGroup) -> list[Tensor]:
        """All rows of a group's units, [G, rows, ...] each."""
        return [tile for each in self.terms for tile in group.rows(each.left).split(_TILE, 1)]

    def _right_tiles(self, group: UnitGroup) -> list[Tensor]:
        terms = self.terms
        return [tile for each in terms for tile in group.rows(each.right_BRD).split(_TILE, 1)]


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
        # One row of tiles for each part of the activations, one column for each matrix.
        lefts = zip(*(each._left_tiles(group) for each in some), strict=True)
        tiles = list(zip(lefts, first._right_tiles(group), strict=True))
        for (ones, right), (others, other_right) in combinations_with_replacement(tiles, 2):
            gram = _left_gram(ones[0], others[0])
            for one, other in zip(ones[1:], others[1:], strict=True):
                gram = gram + _left_gram(one, other)
            gram = gram.mul_(_gram(right, other_right))
            twice = 1 if right is other_right else 2
            squares_U[group.units_G] += twice * gram.sum((1, 2), dtype=torch.float64)
    # Rounding may leave a tiny negative number where a gradient is zero.
    return squares_U.clamp_(min=0.0)


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows, [G, N, D] and [G, M, D] -> [G, N, M]; float64."""
    return torch.bmm(one.double(), other.double().transpose(1, 2))


def _left_gram(one: Tensor, other: Tensor) -> Tensor:
    """As `_gram`, where looked-up rows stand for unit vectors."""
    if one.dtype != torch.int64 and other.dtype != torch.int64:
        return _gram(one, other)
    if one.dtype == torch.int64 and other.dtype == torch.int64:
        return (one.unsqueeze(2) == other.unsqueeze(1)).double()
    if one.dtype == torch.int64:
        ids_GNM = one.unsqueeze(2).expand(-1, -1, other.shape[1])
        return other.transpose(1, 2).gather(1, ids_GNM).double()
    return _left_gram(other, one).transpose(1, 2)


def _row_norms(value: Tensor) -> Tensor:
    """Norm of each row, float64 [B, R]; a looked-up row stands for a unit vector."""
    if value.dtype == torch.int64:
        return torch.ones(value.shape, dtype=torch.float64, device=value.device)
    norms: Tensor = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float64)
    return norms


def _kept(value_BRX: Tensor, dropped_B: Tensor) -> Tensor:
    """Rows of the units that count, the others zero: zero times NaN would be NaN; [B * R, X]."""
    return value_BRX.masked_fill(dropped_B.view(-1, 1, 1), 0.0).flatten(0, 1)
