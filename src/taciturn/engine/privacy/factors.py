"""Per-unit gradients of a matrix kept as factors: exact norms and sums without instantiating them.

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
    terms are part of the norm (PITFALLS 8).

    Attributes:
        terms: at least one.
        layout: which sequences belong to which unit.
        shape: (P, D).
    """

    terms: tuple[Factors, ...]
    layout: BatchLayout
    shape: tuple[int, int]

    def squared_norms(self) -> Tensor:
        """Exact squared l2 norm of each unit's gradient; float64 [U]."""
        return _squared_norms([self])

    def weighted_sum(self, scale_U: Tensor) -> Tensor:
        """sum over u of scale[u] * gradient[u], as one matrix product in at least fp32; [P, D].

        A unit with scale zero is left out even if its rows are not finite.
        """
        scale_B = self.layout.of_sequences(scale_U)
        # Padding of packed rows has scale zero as well, but its rows are finite.
        dropped_B = scale_B == 0 if bool((scale_U == 0).any()) else None
        parts = [self._weighted(term, scale_B, dropped_B) for term in self.terms]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _weighted(self, term: Factors, scale_B: Tensor, dropped_B: Tensor | None) -> Tensor:
        right_BRD = term.right_BRD.to(self._dtype) * scale_B.to(self._dtype).view(-1, 1, 1)
        right_ND = _kept(right_BRD, dropped_B)
        if term.left.dtype != torch.int64:
            return _kept(term.left.to(self._dtype), dropped_B).T @ right_ND
        total_PD = torch.zeros(self.shape, dtype=self._dtype, device=scale_B.device)
        return total_PD.index_add_(0, term.left.flatten(), right_ND)

    def dense(self) -> Tensor:
        """The gradients themselves, [U, P, D]: what the factors stand for."""
        total_UPD: Tensor | None = None
        for term in self.terms:
            part = self._dense(term)
            total_UPD = part if total_UPD is None else total_UPD.add_(part)
        assert total_UPD is not None
        return total_UPD

    @property
    def _dtype(self) -> torch.dtype:
        # Sums in half precision would lose whole units.
        return torch.promote_types(self.terms[0].right_BRD.dtype, torch.float32)

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
    """Exact squared l2 norms of each unit's gradients, some matrices at a time; float64 [U] each.

    Their sum is the squared norm over all of them. |sum_n l_n r_n^T|^2 = sum_nm (l_n . l_m)(r_n .
    r_m), in tiles: each product of rows is accumulated in at least fp32, their sum in float64. Of
    matrices that meet the same activations r, as a query, key and value do, (l_n . l_m) are added
    up first, and (r_n . r_m) is made once.
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
    if len(of.terms) > 1 or type(of) is not FactoredGradients:  # a subclass has its own norms
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
    """Inner products of rows, [G, N, D] and [G, M, D] -> [G, N, M]; in fp32 at least."""
    dtype = torch.promote_types(one.dtype, torch.float32)
    return torch.bmm(one.to(dtype), other.to(dtype).transpose(1, 2))


def _left_gram(one: Tensor, other: Tensor) -> Tensor:
    """As `_gram`, where looked-up rows stand for unit vectors."""
    if one.dtype != torch.int64 and other.dtype != torch.int64:
        return _gram(one, other)
    if one.dtype == torch.int64 and other.dtype == torch.int64:
        return (one.unsqueeze(2) == other.unsqueeze(1)).float()
    if one.dtype == torch.int64:
        ids_GNM = one.unsqueeze(2).expand(-1, -1, other.shape[1])
        return other.transpose(1, 2).gather(1, ids_GNM).float()
    return _left_gram(other, one).transpose(1, 2)


def _kept(value_BRX: Tensor, dropped_B: Tensor | None) -> Tensor:
    """Rows of the units that count, the others zero: zero times NaN would be NaN; [B * R, X]."""
    if dropped_B is not None:
        value_BRX = value_BRX.masked_fill(dropped_B.view(-1, 1, 1), 0.0)
    return value_BRX.flatten(0, 1)
