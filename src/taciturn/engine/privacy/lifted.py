"""A parameter lifted to a virtual copy per unit, so that autograd itself gives per-unit gradients.

In place of each trainable parameter W the model sees a `LiftedParameter`: W's value, and a
*carrier* of shape [U, *W.shape] that takes no memory (all strides zero) and whose only purpose is
to receive, in the backward pass, each unit's own gradient. Every operation that touches a lifted
parameter has a rule (rules.py): forward as usual, backward per unit instead of summed.
The chain rule does the rest: the uses of a tied weight add up (none overwrites another),
checkpointing recomputes through the same rules (no gradient is lost), broadcast inputs are expanded
to the sequences they serve (no gradient of a batch of one). An operation without a rule is refused
by name, never approximated.

Shapes: B sequences, T tokens, U units, E experts, D input features, P output features, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy import backward
from taciturn.engine.privacy.receiver import Receiver
from taciturn.errors import UnsupportedLayerError

REMEDY = "leave it out of the trained parameters, for example with target_modules"

# What may be asked of a lifted parameter that is no operation on it. `Any`, because the types of
# torch hide that these are descriptors.
_TENSOR: Any = Tensor
_METADATA: frozenset[Any] = frozenset(
    {
        _TENSOR.shape.__get__,
        _TENSOR.dtype.__get__,
        _TENSOR.device.__get__,
        _TENSOR.layout.__get__,
        _TENSOR.ndim.__get__,
        _TENSOR.requires_grad.__get__,
        _TENSOR.is_cuda.__get__,
        _TENSOR.is_meta.__get__,
        _TENSOR.is_quantized.__get__,
        _TENSOR.size,
        _TENSOR.dim,
        _TENSOR.numel,
        _TENSOR.element_size,
        _TENSOR.is_floating_point,
        _TENSOR.is_complex,
        _TENSOR.is_contiguous,
        _TENSOR.__len__,
    }
)

_RULES: dict[Any, Callable[..., Any]] = {}

StandIn = TypeVar("StandIn", bound=Callable[..., Any])


def rule(*functions: Any) -> Callable[[StandIn], StandIn]:
    """Decorates what stands in for `functions` when an argument is lifted; see rules.py."""

    def register(stand_in: StandIn) -> StandIn:
        _RULES.update(dict.fromkeys(functions, stand_in))
        return stand_in

    return register


class LiftedParameter(Tensor):
    """A parameter's value together with the carrier of its per-unit gradients."""

    value: Tensor
    carrier: Tensor
    receiver: Receiver

    @staticmethod
    def lift(value: Tensor, carrier: Tensor, receiver: Receiver) -> LiftedParameter:
        """Pair `value` with a carrier [U, *value.shape]."""
        # Of a sharded parameter, this process's rows stand in until the layer's weight is whole.
        plain = (value.to_local() if isinstance(value, DTensor) else value).detach()
        lifted: LiftedParameter = Tensor._make_subclass(LiftedParameter, plain)
        lifted.value, lifted.carrier, lifted.receiver = plain, carrier, receiver
        return lifted

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        stand_in = _RULES.get(func)
        if stand_in is None:
            raise refusal((*args, *kwargs.values()), func)
        try:
            return stand_in(*args, **kwargs)
        except TypeError as error:  # an argument that the rule does not know, such as `out`
            raise refusal((*args, *kwargs.values()), func) from error

    @property
    def parameter_name(self) -> str:
        """The parameter that this is, or was computed from."""
        return self.receiver.name

    def derive(self, value: Tensor, carrier: Tensor) -> LiftedParameter:
        """A lifted tensor computed from this parameter alone."""
        return LiftedParameter.lift(value, carrier, self.receiver.instantiating())

    def transposed(self) -> LiftedParameter:
        """The matrix seen transposed."""
        carrier = self.carrier.transpose(1, 2)
        return LiftedParameter.lift(self.value.T, carrier, self.receiver.transposed())


class LowRankSum(Tensor):
    """base + scale * left @ right, with lifted factors, kept apart: what LoRA makes of experts.

    Only `unbind` and `routed_linear` know what to do with it.
    """

    base: Tensor
    left: LiftedParameter
    right: LiftedParameter
    scale: float

    @staticmethod
    def make(
        base: Tensor, left: LiftedParameter, right: LiftedParameter, scale: float
    ) -> LowRankSum:
        """base [E, P, D] or [P, D], plain; left [.., P, r]; right [.., r, D]."""
        made: LowRankSum = Tensor._make_subclass(LowRankSum, base.detach())
        made.base, made.left, made.right, made.scale = base, left, right, scale
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs or {})
        if func is Tensor.unbind and len(args) == 1 and isinstance(args[0], LowRankSum):
            whole = args[0]
            parts = zip(whole.base, whole.left.unbind(), whole.right.unbind(), strict=True)
            return tuple(LowRankSum.make(b, p, r, whole.scale) for b, p, r in parts)  # type: ignore[arg-type]
        names = [each.left for each in args if isinstance(each, LowRankSum)]
        raise refusal(tuple(names), func)


def routed_linear(x_RD: Tensor, weight_PD: Tensor, token_of_R: Tensor) -> Tensor:
    """Rows of flattened activations [B*T, D], picked by `token_of_R`, through one matrix.

    For a plain weight this is `F.linear`; for a lifted one, each row's gradient goes to the
    unit that the row came from, which `F.linear` alone could not know.
    """
    if isinstance(weight_PD, LowRankSum):
        low_Rr = routed_linear(x_RD, weight_PD.right, token_of_R)
        update_RP = routed_linear(low_Rr, weight_PD.left, token_of_R)
        return F.linear(x_RD, weight_PD.base) + weight_PD.scale * update_RP
    if not isinstance(weight_PD, LiftedParameter):
        return F.linear(x_RD, weight_PD)
    layout = weight_PD.receiver.layout
    unit_of_R = layout.unit_of_B[token_of_R // layout.tokens]
    return backward.apply(
        backward.RoutedLinear, x_RD, weight_PD.value, weight_PD.carrier, unit_of_R
    )


def refusal(arguments: tuple[Any, ...], func: Any) -> UnsupportedLayerError:
    """The error that names the parameters among `arguments` and the operation `func`."""
    names = ", ".join(sorted({each.parameter_name for each in _lifted(arguments)}))
    return UnsupportedLayerError(
        f"parameter {names!r} is used by {getattr(func, '__name__', str(func))!r} in a way whose "
        f"per-unit gradient is not known; {REMEDY}"
    )


def _lifted(arguments: Any) -> Iterator[LiftedParameter]:
    for each in arguments:
        if isinstance(each, LiftedParameter):
            yield each
        elif isinstance(each, list | tuple):
            yield from _lifted(each)
