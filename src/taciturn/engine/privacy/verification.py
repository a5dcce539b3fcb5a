"""The proof before the run: per-unit gradients against brute force, on a public random batch.

The rules of `lifted` are exact, but only for a model that treats sequences independently and uses
its parameters where the rules can see them. No reading of a model's code shows that; trying does.

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, trainable_parameters
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.errors import UnsupportedLayerError

# Published on purpose: the batch and the perturbation are public.
_SEED = 20_160_701
# Four sequences of three units. One unit has two sequences, not side by side.
_UNIT_OF_B = (1, 0, 2, 1)


@dataclass(frozen=True, slots=True)
class _Tolerance:
    """Differences that rounding explains; a wrong rule, or records that mix, are off by far more.

    Attributes:
        loss: of a unit's loss, relative.
        parameter: of one parameter's gradient, relative to itself.
        unit: of one parameter's gradient, relative to the unit's whole gradient. Some gradients
            are zero but for rounding, as a key's bias is under softmax.
    """

    loss: float
    parameter: float
    unit: float


_PLAIN, _FACTORED = Form.INSTANTIATE, Form.FACTORS
# Gram matrices in fp32 against the instantiated gradient, which half precision rounds.
_GRAM = 2e-2

_FULL_PRECISION = _Tolerance(loss=1e-5, parameter=1e-3, unit=1e-5)
# Half precision may route a token of a mixture of experts differently alone than in a batch.
_HALF_PRECISION = _Tolerance(loss=5e-2, parameter=0.25, unit=2e-2)


def public_batch(vocab_size: int, tokens: int = 13) -> UnitBatch:
    """A random batch that everyone may know, made so that no wrong layout looks like a right one.

    Four sequences of three units; the lengths differ, and `tokens` is no multiple of four.
    """
    lengths = _lengths(tokens)
    generator = torch.Generator().manual_seed(_SEED)
    ids_BT = torch.zeros(len(lengths), tokens, dtype=torch.int64)
    weights_BT = torch.zeros(len(lengths), tokens)
    for row, length in enumerate(lengths):
        ids_BT[row, :length] = torch.randint(vocab_size, (length,), generator=generator)
        weights_BT[row, 1:length] = 1 / (length - 1)
    unit_of_B = torch.tensor(_UNIT_OF_B)
    return UnitBatch(ids_BT, weights_BT, unit_of_B, int(unit_of_B.max()) + 1)


def packed_public_batch(vocab_size: int) -> UnitBatch:
    """The same, packed: two records in each row, one unit in both rows, and padding after one."""
    batch = public_batch(vocab_size)
    lengths = _lengths(batch.input_ids_BT.shape[1])
    return batch.packed(lengths, width=sum(sorted(lengths)[-3::2]))


def _lengths(tokens: int) -> list[int]:
    return [tokens - 6, tokens, tokens - 8, tokens - 3]


def verify(loss: nn.Module, batch: UnitBatch) -> None:
    """Compare with one backward pass per unit, in both forms; before anything is spent.

    Each unit is also tried alone and without the others' padding, so that a model in which records
    or padded lengths influence each other is found out. Parameters are perturbed meanwhile and
    restored bit for bit: at LoRA's start one matrix is zero and would hide the other's gradient.

    Args:
        loss: in the mode (train or eval) and with the checkpointing that the run will use.
        batch: public; from `public_batch`, or `packed_public_batch` for a run with packed rows.

    Raises:
        UnsupportedLayerError: a parameter's per-unit gradient is wrong, a unit's loss depends on
            others, the model keeps state from one batch to the next, or a parameter trains nothing.
        ValueError: `batch` cannot show that.
    """
    _check_batch(batch)
    tolerance = _tolerance(loss)
    with _perturbed(trainable_parameters(loss)), _same_buffers(loss):
        forms = [per_example_gradients(loss, batch, form) for form in (_PLAIN, _FACTORED)]
        values = [(gradients, gradients.dense()) for gradients in forms]
        for unit in range(batch.n_units):
            alone = _alone(batch, unit)
            truth_loss, truth = _one_backward(loss, alone)
            for gradients, dense in values:
                _compare_losses(float(gradients.losses_U[unit]), truth_loss, tolerance)
                _compare_gradients(dense, unit, truth, tolerance)
                _compare_norms(gradients, dense, unit)


def brute_force_gradients(loss: nn.Module, batch: UnitBatch) -> list[dict[str, Tensor]]:
    """One ordinary backward pass per unit: the definition that everything else must equal."""
    return [_one_backward(loss, _alone(batch, unit))[1] for unit in range(batch.n_units)]


def _one_backward(loss: nn.Module, batch: UnitBatch) -> tuple[float, dict[str, Tensor]]:
    parameters = trainable_parameters(loss)
    total = loss(batch).sum()
    gradients = torch.autograd.grad(
        total, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return float(total.detach()), dict(zip(parameters, gradients, strict=True))


def _alone(batch: UnitBatch, unit: int) -> UnitBatch:
    """One unit's sequences, without the padding that only other units need."""
    rows_B = batch.unit_of_B == unit
    weights_BT = batch.loss_weights_BT[rows_B]
    targets = weights_BT.any(0).nonzero()
    length = int(targets.max()) + 1 if len(targets) else weights_BT.shape[1]
    unit_of_B = torch.zeros_like(batch.unit_of_B[rows_B])
    return UnitBatch(
        batch.input_ids_BT[rows_B, :length], weights_BT[:, :length], unit_of_B, n_units=1
    )


def _check_batch(batch: UnitBatch) -> None:
    b, t = batch.input_ids_BT.shape
    units = batch.unit_of_B.unique()
    if b < 3 or t % b == 0 or b % t == 0 or len(units) != batch.n_units or batch.n_units < 2:
        raise ValueError(
            f"a batch of {b} sequences of {t} tokens and {batch.n_units} units cannot tell right "
            "from wrong layouts; use public_batch"
        )


def _compare_losses(loss: float, truth: float, tolerance: _Tolerance) -> None:
    if not math.isfinite(truth):
        raise UnsupportedLayerError(f"the loss on random tokens is {truth}; the model is damaged")
    if not abs(loss - truth) <= tolerance.loss * max(1.0, abs(truth)):
        raise UnsupportedLayerError(
            f"a record's loss is {loss:.6g} in a batch and {truth:.6g} alone: the model lets "
            "records or padding influence each other, or is random in its forward pass (batch "
            "normalisation, dropout, attention to padding); it cannot be fitted privately"
        )


def _compare_gradients(
    gradients: Mapping[str, Tensor], unit: int, truth: Mapping[str, Tensor], tolerance: _Tolerance
) -> None:
    whole = math.hypot(*(_norm(value) for value in truth.values()))
    if not (whole > 0 and math.isfinite(whole)):
        raise UnsupportedLayerError(
            f"a unit's gradient on random tokens has norm {whole}; the model cannot be fitted"
        )
    for name, value in truth.items():
        norm, error = _norm(value), _norm(gradients[name][unit] - value)
        if not error <= tolerance.parameter * norm + tolerance.unit * whole:
            raise UnsupportedLayerError(
                f"parameter {name!r}: its per-unit gradient is off by {error:.1e} from a norm of "
                f"{norm:.1e}; the layer mixes records or has no exact rule. Leave it out of the "
                "trained parameters, for example with target_modules"
            )


def _compare_norms(gradients: PerUnitGradients, dense: Mapping[str, Tensor], unit: int) -> None:
    """A norm from Gram matrices is that of the gradient that the factors stand for."""
    for name, value in gradients.values.items():
        if isinstance(value, FactoredGradients):
            norm, expected = float(value.squared_norms()[unit]) ** 0.5, _norm(dense[name][unit])
            if not abs(norm - expected) <= _GRAM * max(expected, _norm(dense[name])):
                raise UnsupportedLayerError(
                    f"parameter {name!r}: its norm is {norm:.6g} from factors and {expected:.6g} "
                    'instantiated; set per_unit_gradients="instantiate"'
                )


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.double()))


def _tolerance(loss: nn.Module) -> _Tolerance:
    exact = {torch.float32, torch.float64}
    tensors = [*loss.parameters(), *(each for each in loss.buffers() if each.is_floating_point())]
    return _FULL_PRECISION if all(each.dtype in exact for each in tensors) else _HALF_PRECISION


@contextmanager
def _perturbed(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Random public values near the parameters' own, so that no gradient hides behind a zero."""
    generator = torch.Generator().manual_seed(_SEED)
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    try:
        with torch.no_grad():
            for value in parameters.values():
                noise = torch.randn(value.shape, generator=generator)
                spread = 0.1 * _norm(value) / math.sqrt(max(1, value.numel())) or 0.02
                value.add_((noise * spread).to(value))
        yield
    finally:
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(kept[name])


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Refuse a model that writes what it saw into a buffer, as running statistics do."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    yield
    for name, value in model.named_buffers():
        if name not in before or not torch.equal(before[name], value):
            raise UnsupportedLayerError(
                f"buffer {name!r} changes in the forward pass: it would carry private rows from "
                "one batch to the next; put that layer into eval mode"
            )
