"""Per-unit gradients, exact by construction and checked against brute force before a run.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taciturn.engine.privacy import rules  # noqa: F401  (imported, it registers itself)
from taciturn.engine.privacy.backward import virtual_copies
from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.lifted import LiftedParameter
from taciturn.engine.privacy.receiver import Receiver
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.errors import GuaranteeError, UnsupportedLayerError


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are fitted, by name; a tied one appears once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def per_example_gradients(
    loss: nn.Module, batch: UnitBatch, form: Form = Form.INSTANTIATE
) -> PerUnitGradients:
    """Each unit's gradient of its own summed loss, for every trainable parameter.

    Guarantee: entry u is the gradient of the losses of unit u's sequences alone, as one backward
    pass per unit would give it up to rounding, provided the model treats sequences independently;
    `verification.verify` checks that. Sequences of one unit are added up before anything is
    clipped. Rounding depends on the batch's shape, about 1e-7 of a gradient in fp32 and 1e-2 in
    bf16: between batches of one shape, entry u is the same bit for bit whoever else is in them, if
    `verification.same_in_company` holds.

    Args:
        loss: module whose forward takes a UnitBatch and returns one loss per sequence, [B].
        batch: whole units.
        form: whether matrices' gradients are instantiated or kept as factors.

    Raises:
        UnsupportedLayerError: a trainable parameter meets an operation without a rule, or none.
        GuaranteeError: autocast is on.
    """
    device = batch.input_ids_BT.device
    if torch.is_autocast_enabled(device.type):
        # Its casts happen inside the rules' backward passes too, where they are not expected.
        raise GuaranteeError("autocast is on; load the model in the wanted dtype instead")
    parameters = trainable_parameters(loss)
    if not parameters:
        raise UnsupportedLayerError("no trainable parameter; choose other target_modules")
    layout = batch.layout
    copies = {
        name: virtual_copies(batch.n_units, value).requires_grad_()
        for name, value in parameters.items()
    }
    lifted = {
        name: LiftedParameter.lift(
            value, copies[name], Receiver(name, layout, _exact(form, device))
        )
        for name, value in parameters.items()
    }
    named: dict[str, Tensor] = {f"loss.{name}": value for name, value in lifted.items()}
    losses_B, gradients = functional_call(_Backward(loss), named, (batch, tuple(copies.values())))
    values = {
        name: _gathered(lifted[name].receiver, parameters[name].shape, gradient)
        for name, gradient in zip(copies, gradients, strict=True)
    }
    losses_U = layout.sums(losses_B.view(-1, 1, 1))[:, 0]
    return PerUnitGradients(_refuse_untrained(values), losses_U, batch.n_fillers)


def sum_parts(
    loss: nn.Module, parts: Iterable[UnitBatch], form: Form = Form.INSTANTIATE
) -> PerUnitGradients:
    """Gradients of units whose sequences are spread over several batches.

    Guarantee: as `per_example_gradients` on all sequences at once; the sums are made before
    clipping, so that a unit of many records is clipped once and as a whole.

    Args:
        parts: at least one; all index the same units. A unit may be absent from some of them.
        form: as in `per_example_gradients`; several parts are always instantiated.

    Raises:
        ValueError: no part, or parts over different numbers of units.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("no part: an empty draw has no gradients, only an empty sum")
    first, *others = parts
    total = per_example_gradients(loss, first, Form.INSTANTIATE if others else form)
    for part in others:
        total = _add(total, per_example_gradients(loss, part))
    return total


def with_fillers(gradients: PerUnitGradients, n_fillers: int) -> PerUnitGradients:
    """The same gradients, of a batch whose last `n_fillers` units are fillers."""
    return PerUnitGradients(gradients.values, gradients.losses_U, n_fillers)


def _add(total: PerUnitGradients, part: PerUnitGradients) -> PerUnitGradients:
    if total.losses_U.shape != part.losses_U.shape:
        raise ValueError(
            f"parts over {len(total.losses_U)} and {len(part.losses_U)} units; all parts must "
            "index the same units"
        )
    # At least fp32: adding many bf16 parts one by one would lose the small ones.
    added = part.dense()
    values = {
        name: value.to(torch.promote_types(value.dtype, torch.float32)).add_(added[name])
        for name, value in total.dense().items()
    }
    return PerUnitGradients(values, total.losses_U + part.losses_U, total.n_fillers)


def _exact(form: Form, device: torch.device) -> Form:
    # With reduced-precision products, norms from Gram matrices would not belong to the sum; and
    # Apple's GPUs have no float64 for them.
    reduced = torch.get_float32_matmul_precision() != "highest"
    return Form.INSTANTIATE if reduced or device.type == "mps" else form


def _gathered(
    receiver: Receiver, shape: torch.Size, gradient: Tensor | None
) -> Tensor | FactoredGradients | None:
    """What arrived at a parameter: instantiated gradients, factors, or the sum of both.

    Args:
        shape: the parameter's; of a sharded one, that of the whole, which its layer multiplied by.
    """
    if not receiver.terms:
        return gradient
    factored = FactoredGradients(tuple(receiver.terms), receiver.layout, (shape[0], shape[1]))
    return factored if gradient is None else factored.dense() + gradient


class _Backward(nn.Module):
    """Runs forward and backward while the lifted parameters are in place.

    The backward pass belongs inside: gradient checkpointing runs the forward again in it, and must
    find the lifted parameters, not the plain ones.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, batch: UnitBatch, copies: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        losses_B = self.loss(batch)
        if losses_B.shape != batch.unit_of_B.shape:
            raise ValueError(
                f"the loss has shape {tuple(losses_B.shape)}; one loss per sequence, "
                f"{tuple(batch.unit_of_B.shape)}, is needed"
            )
        if not losses_B.requires_grad:
            return losses_B, (None,) * len(copies)
        return losses_B.detach(), torch.autograd.grad(losses_B.sum(), copies, allow_unused=True)


def _refuse_untrained(
    values: Mapping[str, Tensor | FactoredGradients | None],
) -> dict[str, Tensor | FactoredGradients]:
    trained = {name: value for name, value in values.items() if value is not None}
    unused = [name for name in values if name not in trained]
    if unused:
        raise UnsupportedLayerError(
            f"{len(unused)} trainable parameters have no gradient ({', '.join(unused[:3])}): they "
            "would be fitted in name only; choose other target_modules"
        )
    return trained
