"""Checks of the sum: sensitivity, clipping by unit, the divisor, exact norms."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mutants.harness import (
    CLIP,
    LIMITS,
    LONG,
    ONE_BATCH,
    PACKED,
    SIGMA,
    SILENT,
    UNITS,
    released,
    run,
    streams,
)
from mutants.variants import VOCABULARY, WIDTH, Dataset, TinyLm, Variant
from support.tiny_models import build, random_batch, with_lora
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy
from taciturn.engine.privacy.clipping import ROUNDING, clip_and_sum
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch


def sensitivity(variant: Variant) -> None:
    """One unit more or less moves the release by at most C / batch, whatever stands beside it."""
    cases = [(UNITS, LONG), (UNITS, [3]), ([[4]] * 64, LONG), ([], LONG)]
    # With C = 6 hardly anyone is clipped: the scale of the loss itself must be the unit's own.
    for (others, one), clip, limits in product(cases, (CLIP, 6.0), (LIMITS, PACKED, ONE_BATCH)):
        dataset = Dataset([*others, one])
        everyone = list(range(dataset.n_units))
        arguments: dict[str, Any] = {"sigma": SILENT, "clip": clip, "limits": limits}
        with_one, without = (
            released(run(variant, dataset, streams(1), drawn=drawn, **arguments))
            for drawn in (everyone, everyone[:-1])
        )
        moved = float((with_one - without).norm()) * 4
        assert moved <= clip * (1 + 1e-5), f"one unit moved the sum by {moved / clip:.2f} C"


def sum_of_clipped_units(variant: Variant) -> None:
    """The release is the sum, over the units drawn, of their gradients clipped: by brute force."""
    dataset = Dataset([*UNITS, LONG])
    drawn = [0, 2, 3, 5, 8]
    model = TinyLm(weighted_cross_entropy)
    expected: Any = sum(_clipped(model, dataset.units[unit]) for unit in drawn)
    state = run(variant, dataset, streams(1), drawn=drawn, sigma=SILENT)
    torch.testing.assert_close(released(state) * 4, expected, rtol=1e-4, atol=1e-5)


def forms_do_not_show(variant: Variant) -> None:
    """Who else is drawn decides how a microbatch's gradients are kept, and with them those of all
    its units: the sum must not move by more than the room that clipping leaves for rounding."""
    dataset = Dataset([[4]] * 64)
    arguments: dict[str, Any] = {"drawn": list(range(64)), "sigma": SILENT, "limits": ONE_BATCH}
    one, other = (
        released(run(variant, dataset, streams(1), form=form, **arguments))
        for form in (Form.INSTANTIATE, Form.FACTORS)
    )
    moved = float((one - other).norm()) * 4
    assert moved <= CLIP * ROUNDING / 2, f"the form moved the sum by {moved / CLIP:.1e} C"


def room_for_rounding(variant: Variant) -> None:
    """A unit that is clipped leaves the room that sums need, in every form."""
    for form in (Form.INSTANTIATE, Form.FACTORS):
        dataset = Dataset([LONG])
        arguments: dict[str, Any] = {"drawn": [0], "sigma": SILENT, "clip": 1e-3, "form": form}
        norm = float(released(run(variant, dataset, streams(1), **arguments)).norm()) * 4
        assert norm <= 1e-3 * (1 - ROUNDING / 2), f"clipped to {norm / 1e-3:.6f} C"


OPPOSITES = (2, 5, 6)
"""The units of `Opposites.data` whose records pull in opposite directions."""


class Opposites(nn.Module):
    """Tokens 1 and 2 pull a matrix in opposite directions, token 3 hardly pulls at all.

    A record of as many of the first as of the second has a gradient a million times smaller than
    its rows, and exactly that of token 3: all numbers have few digits.
    """

    def __init__(self, loss_of: Any = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.table_VD = torch.randint(-4, 5, (VOCABULARY, WIDTH), generator=generator) / 4
        self.pull_VD = torch.randint(-4, 5, (VOCABULARY, WIDTH), generator=generator) / 4
        self.table_VD[2], self.pull_VD[2] = self.table_VD[1], -self.pull_VD[1]
        self.pull_VD[3] *= 2.0**-22
        with torch.no_grad():
            self.inner.weight.copy_(torch.eye(WIDTH))

    def forward(self, batch: UnitBatch) -> Tensor:
        ids_BT = batch.input_ids_BT
        y_BTD = self.inner(self.table_VD[ids_BT]) * self.scale
        return ((y_BTD * self.pull_VD[ids_BT]).sum(-1) * batch.loss_weights_BT).sum(1)

    @staticmethod
    def data() -> Dataset:
        """Units of one record, and of two; some of the second kind cancel by both together."""
        dataset = Dataset([[9], [9], [9], [9, 9], [9, 9], [9, 9], [9], [9], [9]])
        alike, one, other = [0, 1, 2, 1, 2, 1, 2, 3, 3], [0] + [1] * 8, [0] + [2] * 7 + [3]
        _write(dataset, 2, [alike])
        _write(dataset, 5, [one, [0] + [2] * 8])
        _write(dataset, 6, [alike])
        _write(dataset, 8, [other])
        return dataset


def _write(dataset: Dataset, unit: int, records: list[list[int]]) -> None:
    for record, ids in zip(dataset.units[unit], records, strict=True):
        record.input_ids[:] = ids


def outstanding_units(variant: Variant) -> None:
    """Units whose factors cancel are in the sum, once and clipped: by brute force, and by what
    each of them moves."""
    data, clip, model = Opposites.data(), 1e-9, Opposites()
    everybody = list(range(data.n_units))
    arguments: dict[str, Any] = {"sigma": SILENT, "clip": clip, "form": Form.FACTORS}

    def summed(drawn: list[int]) -> Tensor:
        state = run(variant, data, streams(1), drawn=drawn, model=Opposites, **arguments)
        return released(state) * 4

    whole = summed(everybody)
    expected: Any = sum(_clipped(model, data.units[unit], clip) for unit in everybody)
    off = float((whole - expected).norm())
    assert off <= 1e-3 * clip, f"the sum is off by {off / clip:.3f} C"
    for unit in OPPOSITES:
        moved = whole - summed([each for each in everybody if each != unit])
        assert float(moved.norm()) <= clip * (1 + 1e-5), "a unit moved the sum by more than C"


def _clipped(model: nn.Module, records: list[Any], clip: float = CLIP) -> Tensor:
    """One unit's gradient, one record after another, by plain backward passes."""
    gradient = torch.zeros(sum(value.numel() for value in model.parameters()), dtype=torch.float64)
    for record in records:
        ids = torch.from_numpy(record.input_ids.astype(np.int64)).unsqueeze(0)
        weights = torch.full(ids.shape, 1 / (ids.shape[1] - 1))
        weights[:, 0] = 0
        loss = model(UnitBatch(ids, weights, torch.zeros(1, dtype=torch.int64), 1))
        parts = torch.autograd.grad(loss.sum(), list(model.parameters()))
        gradient += torch.cat([part.double().flatten() for part in parts])
    return gradient * min(1.0, clip / (1 + ROUNDING) / max(1e-300, float(gradient.norm())))


def public_divisor(variant: Variant) -> None:
    """However many were drawn, the sum is divided by the expected number."""
    dataset = Dataset([[5]] * 9)
    for drawn in ([0], [0, 1, 2, 3], list(range(9))):
        state = run(variant, dataset, streams(1), drawn=drawn, sigma=SILENT)
        model = TinyLm(weighted_cross_entropy)
        expected: Any = sum(_clipped(model, dataset.units[unit]) for unit in drawn)
        ratio = float(expected.norm() / released(state).norm())
        assert math.isclose(ratio, 4, rel_tol=1e-4), f"divided by {ratio:.3f}, expected 4"


def records_apart(variant: Variant) -> None:
    """A short record's gradient is the same with a long one beside it in the microbatch."""
    model = TinyLm(variant.loss_of)
    short, both = random_batch([4], [0], seed=3), random_batch([4, 40], [0, 1], seed=4)
    both.input_ids_BT[0, :4] = short.input_ids_BT[0, :4]
    for batch in (short, both):
        batch.input_ids_BT.remainder_(VOCABULARY)
    alone, beside = variant.gradients(model, short), variant.gradients(model, both)
    for name, value in alone.dense().items():
        torch.testing.assert_close(beside.dense()[name][0], value[0], rtol=1e-4, atol=1e-6)


def not_finite(variant: Variant) -> None:
    """A unit whose gradient is not finite leaves the others' sum as it is."""
    shapes = {"w": torch.zeros(3, 2), "b": torch.zeros(4)}
    values = {name: torch.randn(4, *value.shape) for name, value in shapes.items()}
    values["w"][2, 1, 1] = float("nan")
    values["b"][1] = float("inf")
    mechanism = variant.mechanism(9, 4, 1, SIGMA, CLIP, tuple(shapes))
    total = mechanism.clip_and_sum(shapes, [PerUnitGradients(values, torch.zeros(4))])
    rest = {name: value[[0, 3]] for name, value in values.items()}
    expected = clip_and_sum(PerUnitGradients(rest, torch.zeros(2)), CLIP)
    for name, value in expected.values.items():
        torch.testing.assert_close(total.values[name], value, rtol=1e-6, atol=1e-8)


def norms(variant: Variant) -> None:
    """Each unit's norm is that of one backward pass of its own: tied weights, LoRA, bf16."""
    batch = random_batch([7, 4, 11, 5, 9], [0, 1, 1, 2, 0])
    for model in (build("llama-tied"), with_lora(build("llama")), build("gpt2").bfloat16()):
        loss = CausalLmLoss(model)
        tied = variant.gradients if model.config.tie_word_embeddings else None
        gradients = (tied or Variant().gradients)(loss, batch)
        actual = variant.norms(gradients).tolist()
        exact = _norms_by_brute_force(loss, batch, gradients)
        for norm, expected in zip(actual, exact, strict=True):
            assert math.isclose(norm, expected, rel_tol=1e-5), f"norm {norm}, exactly {expected}"


def norms_from_factors(variant: Variant) -> None:
    """So are the norms that are made without the gradients: a tied weight is used twice."""
    batch, loss = random_batch([7, 4, 11, 5, 9], [0, 1, 1, 2, 0]), CausalLmLoss(build("llama-tied"))
    gradients = variant.factors(loss, batch)
    exact = _norms_by_brute_force(loss, batch, gradients)
    for norm, expected in zip(variant.norms(gradients).tolist(), exact, strict=True):
        assert math.isclose(norm, expected, rel_tol=1e-5), f"norm {norm}, exactly {expected}"


def _norms_by_brute_force(
    loss: nn.Module, batch: UnitBatch, gradients: PerUnitGradients
) -> list[float]:
    parameters = [value for value in loss.parameters() if value.requires_grad]
    if parameters[0].dtype == torch.bfloat16:
        # Half precision rounds differently alone: there, the values are taken as they are.
        squares = sum(v.double().flatten(1).square().sum(1) for v in gradients.dense().values())
        return [math.sqrt(each) for each in squares.tolist()]  # type: ignore[union-attr]
    losses_B = loss(batch)
    out = []
    for unit in range(batch.n_units):
        of_unit = losses_B[batch.unit_of_B == unit].sum()
        parts = torch.autograd.grad(of_unit, parameters, retain_graph=True)
        out.append(math.hypot(*(float(part.double().norm()) for part in parts)))
    return out
