"""Per-unit gradients, exact by construction and checked against brute force before a run.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taciturn.engine.privacy.lifted import (
    GatherUnits,
    LiftedParameter,
    SequenceShape,
    virtual_copies,
)
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.errors import UnsupportedLayerError

# Relative difference from brute force that fp32 rounding explains; a wrong rule is off by far more.
_FP32_TOLERANCE = 1e-3
_BF16_TOLERANCE = 1e-1


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are fitted, by name; a tied one appears once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def per_example_gradients(loss: nn.Module, batch: UnitBatch) -> PerUnitGradients:
    """Each unit's gradient of its own summed loss, for every trainable parameter.

    Guarantee: entry u is the gradient of the losses of unit u's sequences alone, as one backward
    pass per unit would give it, provided the model treats sequences independently; `verify` checks
    that. Sequences of one unit are added up before anything is clipped.

    Args:
        loss: module whose forward takes a UnitBatch and returns one loss per sequence, [B].
        batch: whole units.

    Raises:
        UnsupportedLayerError: a trainable parameter meets an operation without a rule, or none.
    """
    parameters = trainable_parameters(loss)
    copies = {
        name: virtual_copies(batch.n_units, value).requires_grad_()
        for name, value in parameters.items()
    }
    lifted = {
        f"loss.{name}": _lift(name, value, copies[name], batch)
        for name, value in parameters.items()
    }
    losses_B, gradients = functional_call(_Backward(loss), lifted, (batch, tuple(copies.values())))
    values = dict(zip(copies, gradients, strict=True))
    _refuse_untrained(values)
    losses_U = losses_B.new_zeros(batch.n_units).index_add_(0, batch.unit_of_B, losses_B)
    return PerUnitGradients(values, losses_U)


def brute_force_gradients(loss: nn.Module, batch: UnitBatch) -> list[dict[str, Tensor]]:
    """One ordinary backward pass per unit: the definition that everything else must equal."""
    parameters = trainable_parameters(loss)
    results = []
    for unit in range(batch.n_units):
        losses_B = loss(_only(batch, unit))
        gradients = torch.autograd.grad(
            losses_B.sum(), list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        results.append(dict(zip(parameters, gradients, strict=True)))
    return results


def verify(loss: nn.Module, batch: UnitBatch) -> None:
    """Compare with brute force on a small public batch; call it before anything is spent.

    Raises:
        UnsupportedLayerError: a parameter's per-unit gradient is wrong, or it trains nothing.
    """
    gradients = per_example_gradients(loss, batch)
    expected = brute_force_gradients(loss, batch)
    for name, value in gradients.values.items():
        truth = torch.stack([unit[name] for unit in expected])
        error = torch.linalg.vector_norm((value - truth).double())
        scale = torch.linalg.vector_norm(truth.double())
        tolerance = _FP32_TOLERANCE if value.dtype == torch.float32 else _BF16_TOLERANCE
        if not error <= tolerance * scale + 1e-9:
            raise UnsupportedLayerError(
                f"parameter {name!r}: per-unit gradient differs from brute force by "
                f"{float(error / scale):.1e} (bound {tolerance:g}); the layer mixes sequences or "
                "has no exact rule. Leave it out of the trained parameters"
            )


def _lift(name: str, value: Tensor, copies: Tensor, batch: UnitBatch) -> LiftedParameter:
    carrier = GatherUnits.apply(copies, batch.unit_of_B)  # type: ignore[no-untyped-call]
    shape = SequenceShape(*batch.input_ids_BT.shape)
    return LiftedParameter.lift(value, carrier, shape, name)


class _Backward(nn.Module):
    """Runs forward and backward while the lifted parameters are in place.

    The backward pass belongs inside: gradient checkpointing runs the forward again in it, and must
    find the lifted parameters, not the plain ones (PITFALLS 9).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, batch: UnitBatch, copies: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        losses_B = self.loss(batch)
        if not losses_B.requires_grad:
            return losses_B, (None,) * len(copies)
        return losses_B.detach(), torch.autograd.grad(losses_B.sum(), copies, allow_unused=True)


def _refuse_untrained(values: Mapping[str, Tensor | None]) -> None:
    unused = [name for name, value in values.items() if value is None]
    if unused:
        raise UnsupportedLayerError(
            f"{len(unused)} trainable parameters have no gradient ({', '.join(unused[:3])}): they "
            "would be fitted in name only; choose other target_modules"
        )


def _only(batch: UnitBatch, unit: int) -> UnitBatch:
    rows = batch.unit_of_B == unit
    return UnitBatch(
        batch.input_ids_BT[rows],
        batch.loss_weights_BT[rows],
        torch.zeros_like(batch.unit_of_B[rows]),
        1,
    )
