"""Where the per-unit gradients of one parameter arrive during a backward pass.

Shapes: R rows of a sequence, P output features, D input features, U units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from taciturn.engine.privacy.factors import Factors
from taciturn.engine.privacy.forms import Form, keeps_factors, rates_of
from taciturn.engine.privacy.layout import BatchLayout


@dataclass(frozen=True, slots=True)
class Receiver:
    """Takes one parameter's gradients, one use at a time.

    Attributes:
        name: the parameter's.
        layout: of the microbatch.
        form: whether a matrix's gradients may be kept as factors.
        swapped: the use sees the matrix transposed.
        terms: the factors that were kept; shared by all views of the parameter.
    """

    name: str
    layout: BatchLayout
    form: Form
    swapped: bool = False
    terms: list[Factors] = field(default_factory=list)

    def split(self, value: Tensor) -> Tensor:
        """View activations that meet the parameter as [B, R, D]."""
        return self.layout.split(value, self.name)

    def transposed(self) -> Receiver:
        """For a use that sees the matrix transposed."""
        return Receiver(self.name, self.layout, self.form, not self.swapped, self.terms)

    def instantiating(self) -> Receiver:
        """For a tensor computed from the parameter: its factors are not the parameter's."""
        return Receiver(self.name, self.layout, Form.INSTANTIATE, self.swapped, self.terms)

    def sums(self, value: Tensor) -> Tensor:
        """A vector's gradients, [U, D], from what each row of activations adds."""
        return self.layout.sums(self.split(value))

    def products(self, g: Tensor, x: Tensor) -> Tensor | None:
        """A matrix's gradients, [U, P, D], from output gradients and activations; None: kept."""
        # Detached: saved activations would hold on to the whole graph.
        g_BRP, x_BRD = self.split(g).detach(), self.split(x).detach()
        if self._keeps(g_BRP, x_BRD.shape[-1], g_BRP.shape[-1]):
            self.terms.append(Factors(x_BRD, g_BRP) if self.swapped else Factors(g_BRP, x_BRD))
            return None
        return self.layout.products(g_BRP, x_BRD)

    def lookups(self, ids: Tensor, g: Tensor, rows: int) -> Tensor | None:
        """A table's gradients, [U, rows, D], from the rows looked up; None: kept."""
        ids_BR, g_BRD = self.split(ids.unsqueeze(-1)).squeeze(-1), self.split(g)
        if not self.swapped and self._keeps(g_BRD, g_BRD.shape[-1], rows, looked_up=True):
            self.terms.append(Factors(ids_BR, g_BRD))
            return None
        return self.layout.lookups(ids_BR, g_BRD, rows)

    def _keeps(
        self, g_BRX: Tensor, in_features: int, out_features: int, *, looked_up: bool = False
    ) -> bool:
        layout = self.layout
        rows_of_unit = layout.rows_per_unit * max(g_BRX.shape[1], layout.tokens) // layout.tokens
        return keeps_factors(
            self.form,
            out_features,
            in_features,
            rows=rows_of_unit,
            units=layout.n_units,
            looked_up=looked_up,
            rates=rates_of(g_BRX.device, g_BRX.dtype),
        )
