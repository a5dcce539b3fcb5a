"""The proof before the run: per-unit gradients against brute force, on public random batches.

The rules of `lifted` are exact, but only for a model that treats sequences independently and uses
its parameters where the rules can see them. No reading of a model's code shows that; trying does.

Two questions are asked. `verify`: is each unit's gradient right, whatever else is in the batch, up
to rounding? In half precision rounding would hide what is wrong, so the model is asked in fp32.
`same_in_company`: in the precision of the run, is it the same bit for bit, whatever else is in a
batch of the same shape?

Shapes: B sequences, T tokens, U units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from taciturn.engine.privacy.clipping import clip_and_sum, unit_norms
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
# Gram matrices against the instantiated gradient, which half precision rounds.
_GRAM = 2e-2

_FULL_PRECISION = _Tolerance(loss=1e-5, parameter=1e-3, unit=1e-5)
# Where fp32 cannot be had: for a quantised base, or on a device without the memory. There only
# `same_in_company` tells records that mix from rounding.
_HALF_PRECISION = _Tolerance(loss=5e-2, parameter=0.25, unit=2e-2)


def public_batch(vocab_size: int, tokens: int = 13) -> UnitBatch:
    """A random batch that everyone may know, made so that no wrong layout looks like a right one.

    Four sequences of three units; the lengths differ, and `tokens` is no multiple of four.
    """
    lengths = [tokens - 6, tokens, tokens - 8, tokens - 3]
    generator = torch.Generator().manual_seed(_SEED)
    ids_BT = torch.zeros(len(lengths), tokens, dtype=torch.int64)
    weights_BT = torch.zeros(len(lengths), tokens)
    for row, length in enumerate(lengths):
        ids_BT[row, :length] = torch.randint(vocab_size, (length,), generator=generator)
        weights_BT[row, 1:length] = 1 / (length - 1)
    unit_of_B = torch.tensor(_UNIT_OF_B)
    return UnitBatch(ids_BT, weights_BT, unit_of_B, int(unit_of_B.max()) + 1)


def long_public_batch(vocab_size: int, tokens: int, *, packed: bool = False) -> UnitBatch:
    """Two units of one random record each, as long as a record can be; public.

    Args:
        packed: they are computed as rows that may hold several records.
    """
    generator = torch.Generator().manual_seed(_SEED)
    ids_BT = torch.randint(vocab_size, (2, tokens), generator=generator)
    weights_BT = torch.full((2, tokens), 1 / (tokens - 1))
    weights_BT[:, 0] = 0.0
    positions_BT = torch.arange(tokens).repeat(2, 1) if packed else None
    return UnitBatch(ids_BT, weights_BT, torch.arange(2), 2, positions_BT=positions_BT)


def verify(
    loss: nn.Module, batch: UnitBatch, long: UnitBatch | None = None, *, exactly: bool = True
) -> None:
    """Compare with one backward pass per unit, in both forms; before anything is spent.

    Each unit is also tried alone and without the others' padding, so that a model in which records
    or padded lengths influence each other is found out. A second batch has an outlier in it: the
    token with the longest embedding, over and over. Parameters are perturbed meanwhile and restored
    bit for bit: at LoRA's start one matrix is zero and would hide the other's gradient.

    Args:
        loss: in the mode (train or eval) and with the checkpointing that the run will use.
        batch: public; from `public_batch`.
        long: from `long_public_batch`, for models that do something else with long records.
        exactly: ask half precision in fp32, at twice the memory of the weights; never done for a
            quantised or sharded model.

    Raises:
        UnsupportedLayerError: a parameter's per-unit gradient is wrong, a unit's loss depends on
            others, the model keeps state from one batch to the next, or a parameter trains nothing.
        ValueError: `batch` cannot show that.
    """
    _check_batch(batch)
    with _in_full_precision(loss, exactly=exactly), _perturbed(loss), _same_buffers(loss):
        tolerance = _tolerance(loss)
        for tried in (batch, _with_outlier(loss, batch)):
            _verify(loss, tried, (_PLAIN, _FACTORED), tolerance)
        if long is not None:
            _verify(loss, _with_outlier(loss, long), (Form.AUTO,), tolerance)


def _verify(
    loss: nn.Module, batch: UnitBatch, forms: Sequence[Form], tolerance: _Tolerance
) -> None:
    found = [per_example_gradients(loss, batch, form) for form in forms]
    values = [(gradients, gradients.dense()) for gradients in found]
    for unit in range(batch.n_units):
        truth_loss, truth = _one_backward(loss, _alone(batch, unit))
        for gradients, dense in values:
            _compare_losses(float(gradients.losses_U[unit]), truth_loss, tolerance)
            _compare_gradients(dense, unit, truth, tolerance)
    for gradients, dense in values:
        _compare_norms(gradients, dense)


def same_in_company(
    loss: nn.Module,
    vocab_size: int,
    shape: tuple[int, int],
    form: Form = Form.AUTO,
    records: int = 1,
    *,
    packed: bool = False,
) -> bool:
    """Whether a unit's gradient is the same bit for bit alone and in any company, at one shape.

    "Alone" is a batch of fillers but for one public unit. The others are random records, copies of
    the unit, and the outlier of `verify`; the unit's place differs. False also where sizes inside
    of the model follow from tokens, as in a mixture of experts: there no trial would show that
    rounding is the same for other tokens. Then units have to be computed one by one.

    Args:
        shape: (units, tokens). At one unit there is no company.
        records: sequences of each unit.
        packed: sequences may hold several records.
    """
    units, _ = shape
    if units == 1:
        return True
    (alone, place), *others = _companies(loss, vocab_size, shape, records, packed=packed)
    with _perturbed(loss):
        expected, sizes = _traced(loss, alone, place, form)
        for batch, where in others:
            own, own_sizes = _traced(loss, batch, where, form)
            if own_sizes != sizes or not all(map(torch.equal, expected, own)):
                return False
    return True


def same_replayed(
    loss: nn.Module,
    vocab_size: int,
    shape: tuple[int, int],
    replayed: Callable[[UnitBatch], PerUnitGradients],
    form: Form = Form.AUTO,
    records: int = 1,
) -> bool:
    """Whether another way to compute gradients gives those of this module, bit for bit.

    Asked on all batches of `same_in_company`, with perturbed parameters: what was computed from
    rows, parameters or another state beforehand shows. Compared are gradients or factors, losses,
    the clipped sum, and all that is noted about units: norms, and which are outstanding.

    Args:
        shape: (units, tokens).
        replayed: may overwrite what it gave before.
        records: of each unit.
    """
    with _perturbed(loss):
        for batch, _ in _companies(loss, vocab_size, shape, records):
            expected = _all(per_example_gradients(loss, batch, form))
            own = _all(replayed(batch))
            if len(own) != len(expected) or not all(map(torch.equal, own, expected)):
                return False
    return True


def _all(gradients: PerUnitGradients) -> list[Tensor]:
    """What gradients are made of, and what is made of them."""
    tensors = [gradients.losses_U]
    for value in gradients.values.values():
        terms = value.terms if isinstance(value, FactoredGradients) else ()
        tensors += [value] if isinstance(value, Tensor) else []
        tensors += [side for term in terms for side in (term.left, term.right_BRD)]
    # Half of the units are clipped, so that norms matter to the sum.
    median = float(unit_norms(gradients).median())
    total = clip_and_sum(gradients, median if 0 < median < math.inf else 1.0)
    return [*tensors, *total.values.values(), *total.tally.unread]


def losses_same_in_company(loss: nn.Module, vocab_size: int, shape: tuple[int, int]) -> bool:
    """As `same_in_company`, of units' losses alone."""
    units, _ = shape
    if units == 1:
        return True
    found = []
    for place, lonely in ((0, True), (0, False), (units - 1, False)):
        batch = _company(loss, vocab_size, shape, place, lonely=lonely)
        with _Sizes() as sizes, torch.no_grad():
            losses_B = loss(batch)
        found.append((sizes.seen, losses_B[place].item()))
    return all(each == found[0] for each in found)


def _traced(
    loss: nn.Module, batch: UnitBatch, place: int, form: Form
) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """One unit's figures, and all sizes on the way to them."""
    with _Sizes() as sizes:
        gradients = per_example_gradients(loss, batch, form)
    return _own(gradients, place), sizes.seen


def _own(gradients: PerUnitGradients, place: int) -> list[Tensor]:
    """Copies of a unit's loss, gradients and norms: nothing of the others is held on to.

    Else what stands for the gradients, which may be most of a run's memory, would be there twice.
    """
    own = [gradients.losses_U[place].clone()]
    for value in gradients.values.values():
        if isinstance(value, FactoredGradients):
            own += [value.squared_norms()[place].clone(), value.dense()[place].clone()]
        else:
            own.append(value[place].clone())
    return own


def _companies(
    loss: nn.Module,
    vocab_size: int,
    shape: tuple[int, int],
    records: int,
    *,
    packed: bool = False,
) -> list[tuple[UnitBatch, int]]:
    """Public batches with the same unit in them, and its place; the first has no other."""
    units, _ = shape
    cases = ((units // 2, True), (units // 2, False), (units - 1, False), (0, True))
    company = partial(_company, loss, vocab_size, shape, records=records, packed=packed)
    return [(company(place, lonely=lonely), place) for place, lonely in cases]


def _company(
    loss: nn.Module,
    vocab_size: int,
    shape: tuple[int, int],
    place: int,
    *,
    lonely: bool,
    records: int = 1,
    packed: bool = False,
) -> UnitBatch:
    """A public batch of `records` for each unit; the unit at `place` is always the same."""
    units, tokens = shape
    generator = torch.Generator().manual_seed(_SEED)
    own_KT = torch.randint(vocab_size, (records, tokens), generator=generator)
    ids_BT = torch.zeros(units * records, tokens, dtype=torch.int64)
    weights_BT = torch.zeros(ids_BT.shape)
    for row in range(len(ids_BT)):
        unit, record = divmod(row, records)
        if unit == place or (not lonely and unit % 3 == 0):
            # Its records end one after the other.
            ids_BT[row], length = own_KT[record], max(2, tokens - 2 - record)
            ids_BT[row, length:] = 0
        elif lonely:
            continue
        elif unit % 3 == 1:
            ids_BT[row], length = _loudest(loss, vocab_size), tokens
        else:
            ids_BT[row] = torch.randint(vocab_size, (tokens,), generator=generator)
            length = tokens
        weights_BT[row, 1:length] = 1 / (length - 1)
    unit_of_B = torch.arange(units).repeat_interleave(records)
    positions_BT = None
    if packed:
        # The unit has rows of one record, and so has who is alone; others have up to three a row.
        alone = [lonely or unit == place for unit in unit_of_B.tolist()]
        several = [1 if own else 1 + row % 3 for row, own in enumerate(alone)]
        positions_BT = torch.stack([_positions(tokens, number) for number in several])
        weights_BT.masked_fill_(positions_BT == 0, 0.0)
    batch = UnitBatch(ids_BT, weights_BT, unit_of_B, units, positions_BT=positions_BT)
    return batch.to(next(loss.parameters()).device)


def _positions(tokens: int, records: int) -> Tensor:
    """Positions in a row of records that are about as long as one another; [T]."""
    parts = torch.arange(tokens).tensor_split(records)  # empty ones where tokens are few
    return torch.cat([torch.arange(len(part)) for part in parts])


def packs(loss: nn.Module, vocab_size: int, tokens: int) -> bool:
    """Whether records of one row are computed as in rows of their own, on public random rows.

    Asked of losses and of gradients, and in packed rows of several units of each unit's gradient,
    as `verify` asks. Nothing of the guarantee depends on it: all records of a row are one unit's.

    Args:
        tokens: of the longest row; the other is shorter.
    """
    generator = torch.Generator().manual_seed(_SEED)
    device = next(loss.parameters()).device
    positions_BT = torch.stack([_positions(tokens, 2), _positions(tokens, 3)])
    ids_BT = torch.randint(vocab_size, (2, tokens), generator=generator)
    weights_BT = torch.full((2, tokens), 1 / tokens).masked_fill(positions_BT == 0, 0.0)
    packed = UnitBatch(ids_BT, weights_BT, torch.arange(2), 2, positions_BT=positions_BT)
    with _in_full_precision(loss, exactly=True), _perturbed(loss), _same_buffers(loss):
        tolerance = _tolerance(loss)
        try:
            _verify(loss, packed.to(device), (_PLAIN, _FACTORED), tolerance)
            for unit in range(packed.n_units):
                one, several = packed.alone(unit), _unpacked(packed.alone(unit))
                truth_loss, truth = _one_backward(loss, several.to(device))
                own_loss, own = _one_backward(loss, one.to(device))
                _compare_losses(own_loss, truth_loss, tolerance)
                _compare_gradients({k: v[None] for k, v in own.items()}, 0, truth, tolerance)
        except UnsupportedLayerError:
            return False
    return True


def _unpacked(batch: UnitBatch) -> UnitBatch:
    """The records of one packed row, each in a row of its own."""
    assert batch.positions_BT is not None
    starts = (batch.positions_BT[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], batch.positions_BT.shape[1]]
    parts = [
        nn.utils.rnn.pad_sequence(
            [row[0, a:b] for a, b in zip(starts, ends, strict=True)], batch_first=True
        )
        for row in (batch.input_ids_BT, batch.loss_weights_BT)
    ]
    return UnitBatch(parts[0], parts[1], torch.zeros(len(starts), dtype=torch.int64), 1)


def _with_outlier(loss: nn.Module, batch: UnitBatch) -> UnitBatch:
    """The batch with the loudest token at every second place of its longest record.

    Not at every place: what attends to nothing but copies has no gradient but rounding.
    """
    ids_BT = batch.input_ids_BT.clone()
    row = int((batch.loss_weights_BT != 0).sum(1).argmax())
    ids_BT[row, ::2] = _loudest(loss, int(ids_BT.max()) + 1)
    return UnitBatch(ids_BT, batch.loss_weights_BT, batch.unit_of_B, batch.n_units)


def _loudest(loss: nn.Module, vocab_size: int) -> int:
    """The token with the longest embedding, if the table of them is whole; else the last."""
    tables = [each.weight for each in loss.modules() if isinstance(each, nn.Embedding)]
    wide = [each for each in tables if len(each) >= vocab_size and not isinstance(each, DTensor)]
    if not wide:
        return vocab_size - 1
    return int(wide[0][:vocab_size].detach().float().norm(dim=1).argmax())


class _Sizes(TorchDispatchMode):
    """Notes the sizes of all tensors that operations take and give, in order.

    Grouped products get the sizes of their groups as values of a tensor: those are noted, too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Names of an operation and its overload are strings that it keeps; str(func) makes one.
        self._note((args, out), grouped="grouped" in func.__name__)
        return out

    def _note(self, value: Any, grouped: bool) -> None:
        """Note the tensors in what an operation took or gave.

        Operations know sequences of tensors and no other container. This is called for each of
        them, thousands of times in a trial, so it looks at the commonest first.
        """
        if isinstance(value, Tensor):
            self.seen.append(tuple(value.shape))
            if grouped and not value.is_floating_point():
                self.seen.append(tuple(value.flatten().tolist()))
        elif isinstance(value, (tuple, list)):
            for each in value:
                self._note(each, grouped)


@contextmanager
def _in_full_precision(loss: nn.Module, *, exactly: bool) -> Iterator[None]:
    """Half-precision weights and buffers as fp32, and back, which loses nothing."""
    tensors = [*loss.parameters(), *loss.buffers()]
    halves = [each for each in tensors if each.dtype in (torch.bfloat16, torch.float16)]
    quantised = any(not each.is_floating_point() for each in loss.parameters())
    if not exactly or quantised or any(isinstance(each, DTensor) for each in tensors):
        yield
        return
    kinds = [each.dtype for each in halves]
    try:
        for each in halves:
            each.data = each.data.float()
        yield
    finally:
        for each, kind in zip(halves, kinds, strict=True):
            each.data = each.data.to(kind)


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
    positions_BT = batch.positions_BT
    return UnitBatch(
        batch.input_ids_BT[rows_B, :length],
        weights_BT[:, :length],
        unit_of_B,
        n_units=1,
        positions_BT=None if positions_BT is None else positions_BT[rows_B, :length],
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


def _compare_norms(gradients: PerUnitGradients, dense: Mapping[str, Tensor]) -> None:
    """A norm from Gram matrices is that of the gradient that the factors stand for."""
    for name, value in gradients.values.items():
        if not isinstance(value, FactoredGradients):
            continue
        whole = _norm(dense[name])
        for unit, square in enumerate(value.squared_norms().tolist()):
            norm, expected = float(square) ** 0.5, _norm(dense[name][unit])
            if not abs(norm - expected) <= _GRAM * max(expected, whole):
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
def _perturbed(loss: nn.Module) -> Iterator[None]:
    """Random public values near the parameters' own, so that no gradient hides behind a zero."""
    parameters = [
        value for value in trainable_parameters(loss).values() if not isinstance(value, DTensor)
    ]
    generator = torch.Generator().manual_seed(_SEED)
    kept = [value.detach().clone() for value in parameters]
    try:
        with torch.no_grad():
            for value in parameters:
                noise = torch.randn(value.shape, generator=generator)
                spread = 0.1 * _norm(value) / math.sqrt(max(1, value.numel())) or 0.02
                value.add_((noise * spread).to(value))
        yield
    finally:
        with torch.no_grad():
            for value, before in zip(parameters, kept, strict=True):
                value.copy_(before)


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
