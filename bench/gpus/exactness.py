"""Checks of the engine's arithmetic on the device: gradients of units, and their clipped sums."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from gpus.items import Item, Outcome, SkippedError, cases, said
from gpus.models import ARCHITECTURES, MIXTURES, Method, Place, privately, small_loss, vocabulary_of
from steps.workload import Workload
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy import verification
from taciturn.engine.privacy.clipping import clip_and_sum, unit_norms
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import (
    per_example_gradients,
    sum_parts,
    trainable_parameters,
)
from taciturn.engine.privacy.types import BoundedSum, UnitBatch
from taciturn.engine.training import batch as batches
from taciturn.engine.training.batch import BatchLimits, bucket_length, microbatches, widths
from taciturn.engine.training.memory import random_batch

NORM_ERROR = 1e-5
HALF_NORM_ERROR = 5e-2
_SAMPLE = 12


def items(place: Place) -> list[Item]:
    """All checks of this module, the most important first."""
    checks = [Item(f"norms/{name}", 5, partial(_norms, name, place)) for name in ARCHITECTURES]
    checks += [
        Item("sensitivity", 12, partial(_sensitivity, place)),
        Item("synchronisation", 3, partial(_synchronisation, place)),
    ]
    checks += [Item(f"company/{name}", 8, partial(_company, name, place)) for name in ARCHITECTURES]
    checks.append(Item("repeated", 3, partial(_repeated, place)))
    return checks


def _case(place: Place, work: Callable[..., Outcome], *arguments: Any) -> Callable[[], Outcome]:
    """A case that computes as the product does."""
    return partial(privately, place, partial(work, *arguments))


def _norms(architecture: str, place: Place) -> Outcome:
    """Norms of units in every form against one backward pass each."""
    half = place.half()
    return cases(
        {
            "lora fp32": _case(place, _norm_case, architecture, "lora", torch.float32, place),
            "full fp32": _case(place, _norm_case, architecture, "full", torch.float32, place),
            "lora bf16": _case(place, _norm_case, architecture, "lora", half, place),
            "full bf16": _case(place, _norm_case, architecture, "full", half, place),
            "nf4": _case(place, _norm_case, architecture, "nf4", half, place),
        }
    )


def _norm_case(architecture: str, method: Method, dtype: torch.dtype, place: Place) -> Outcome:
    loss = small_loss(architecture, method, dtype, place)
    vocabulary = vocabulary_of(loss)
    batch = verification.public_batch(vocabulary).to(torch.device(place.device))
    truths = verification.brute_force_gradients(loss, batch)
    truth_U = torch.tensor(
        [
            sum(float(value.double().square().sum()) for value in unit.values()) ** 0.5
            for unit in truths
        ]
    )
    errors = {}
    for form in (Form.INSTANTIATE, Form.FACTORS, Form.AUTO):
        norms_U = unit_norms(per_example_gradients(loss, batch, form)).cpu().double()
        errors[str(form)] = float(((norms_U - truth_U).abs() / truth_U).max())
    long = verification.long_public_batch(vocabulary, 33 if place.tiny else 200)
    # Raises where a parameter's gradient is further off than the product promises.
    verification.verify(loss, batch, long.to(torch.device(place.device)), exactly=False)
    worst = max(errors.values())
    bound = NORM_ERROR if dtype == torch.float32 else HALF_NORM_ERROR
    return Outcome(worst <= bound, f"{worst:.0e}", {"errors": errors, "bound": bound})


def _company(architecture: str, place: Place) -> Outcome:
    """A unit's gradient bit for bit alone and in company, in the run's precisions."""
    works: dict[str, Callable[[], Outcome]] = {}
    spans = (16, 40) if place.tiny else (16, 64) if place.brief else (16, 64, 256)
    for name, dtype in (("bf16", place.half()), ("fp32", torch.float32)):
        shapes = [(8, width, Form.AUTO) for width in spans]
        shapes += [(8, spans[1], form) for form in (Form.INSTANTIATE, Form.FACTORS)]
        works[name] = _case(place, _company_case, architecture, "lora", dtype, shapes, place)
    if architecture == "llama":
        shapes = [(8, width, Form.AUTO) for width in spans]
        works["nf4"] = _case(
            place, _company_case, architecture, "nf4", place.half(), shapes[1:], place
        )
        works["full bf16"] = _case(
            place, _company_case, architecture, "full", place.half(), shapes, place
        )
    if architecture in MIXTURES:
        # Two forward passes show that the product takes units one by one; more say no more.
        works = dict(list(works.items())[:1])
    return cases(works)


def _company_case(
    architecture: str,
    method: Method,
    dtype: torch.dtype,
    shapes: list[tuple[int, int, Form]],
    place: Place,
) -> Outcome:
    loss = small_loss(architecture, method, dtype, place)
    vocabulary = vocabulary_of(loss)
    mixture = architecture in MIXTURES
    found, reasons = {}, {}
    for units, width, form in shapes[:1] if mixture else shapes:
        name = f"{units}x{width} {form}"
        found[name] = verification.same_in_company(loss, vocabulary, (units, width), form)
        if not found[name] and not mixture:
            reasons[name] = _differences(loss, vocabulary, (units, width), form)
    if mixture:
        alone = verification.same_in_company(loss, vocabulary, (1, 16))
        (together,) = found.values()
        told = "together" if together else "one by one: sizes within follow from tokens"
        return Outcome(alone, f"units {told}")
    good = sum(found.values())
    details = {"same": found, "differences": reasons}
    return Outcome(good == len(found), f"{good} of {len(found)} shapes the same", details)


def _differences(
    loss: CausalLmLoss, vocabulary: int, shape: tuple[int, int], form: Form
) -> dict[str, Any]:
    """By how much a unit's gradient moves with its company, where that is public."""
    try:
        units, _ = shape
        middle = units // 2
        rows: dict[str, Any] = {}
        alone = verification._company(loss, vocabulary, shape, middle, lonely=True)
        truth = per_example_gradients(loss, alone, form)
        first = truth.dense()
        for name, place, lonely in (
            ("others", middle, False),
            ("last place", units - 1, False),
            ("first place alone", 0, True),
        ):
            batch = verification._company(loss, vocabulary, shape, place, lonely=lonely)
            second = per_example_gradients(loss, batch, form)
            dense = second.dense()
            off = {
                key: float(
                    (first[key][middle] - dense[key][place]).double().norm()
                    / first[key][middle].double().norm().clamp(min=1e-30)
                )
                for key in first
            }
            worst = max(off, key=off.__getitem__)
            rows[name] = {
                "loss differs": float(truth.losses_U[middle] - second.losses_U[place]),
                "parameters that differ": sum(value > 0 for value in off.values()),
                "of": len(off),
                "worst": [worst, off[worst]],
            }
        return rows
    except Exception as error:
        return {"not explained": said(error)}


def _repeated(place: Place) -> Outcome:
    """The same microbatch twice, and its clipped sum, bit for bit."""
    return cases(
        {
            f"{method} {name}": _case(place, _repeated_case, method, dtype, place)
            for method, name, dtype in (
                ("lora", "bf16", place.half()),
                ("full", "bf16", place.half()),
                ("full", "fp32", torch.float32),
            )
        }
    )


def _repeated_case(method: Method, dtype: torch.dtype, place: Place) -> Outcome:
    loss = small_loss("llama", method, dtype, place)
    batch = _random(loss, 8, 64, place)
    sums = [
        clip_and_sum(per_example_gradients(loss, batch, Form.AUTO), 0.1).values for _ in range(3)
    ]
    off = [name for name in sums[0] if not _all_equal([each[name] for each in sums])]
    return Outcome(not off, "the same" if not off else f"{len(off)} differ", {"differ": off[:9]})


def _all_equal(values: list[torch.Tensor]) -> bool:
    return all(torch.equal(values[0], other) for other in values[1:])


def _random(loss: CausalLmLoss, units: int, width: int, place: Place) -> UnitBatch:
    vocabulary = vocabulary_of(loss)
    return random_batch(vocabulary, units, width, torch.device(place.device))


def _sensitivity(place: Place) -> Outcome:
    """Clipped sums over 512 units, with and without one of them."""
    return cases(
        {
            f"{method} {name}": _case(place, _sensitivity_case, method, dtype, place)
            for method, name, dtype in (
                ("lora", "bf16", place.half()),
                ("full", "bf16", place.half()),
                ("full", "fp32", torch.float32),
            )
        }
    )


def _sensitivity_case(method: Method, dtype: torch.dtype, place: Place) -> Outcome:
    loss = small_loss("llama", method, dtype, place)
    vocabulary = vocabulary_of(loss)
    units, longest = (48, 24) if place.tiny else (512, 64)
    random = np.random.default_rng(0)
    lengths = [int(length) for length in random.integers(4, longest + 1, units)]
    dataset = Workload.random([lengths], vocabulary).dataset(1)
    limits = BatchLimits(2048, 32, longest)
    # As the product does before it trains.
    spans = widths(longest)
    shapes = {(limits.units_of(width, 1), width) for width in (spans[0], spans[-1])}
    same = all(verification.same_in_company(loss, vocabulary, shape) for shape in shapes)
    if not same:
        limits = BatchLimits(2048, 1, longest)
    parameters = trainable_parameters(loss)
    clip_norm = 0.5 * _typical_norm(loss, longest, place)
    mechanism = DpSgdMechanism(units, units, 1, 1.0, clip_norm, tuple(parameters))

    def gradients(groups: Any, form: Form) -> Any:
        device = torch.device(place.device)
        return (sum_parts(loss, [part.to(device) for part in group], form) for group in groups)

    def clipped(drawn: np.ndarray[Any, Any]) -> BoundedSum:
        groups = partial(microbatches, dataset, drawn, limits)
        total = mechanism.clip_and_sum(parameters, gradients(groups(), Form.AUTO))
        settle, alone = getattr(mechanism, "settle", None), getattr(batches, "alone", None)
        if settle is None or alone is None:
            return total
        settled: BoundedSum = settle(
            total, lambda missing: gradients(alone(groups(), missing), Form.INSTANTIATE)
        )
        return settled

    def width_of(unit: int) -> int:
        return bucket_length(lengths[unit], longest)

    count = 3 if place.tiny or place.brief or not same else _SAMPLE
    removed = [int(unit) for unit in random.choice(units, count, replace=False)]
    worst, clipped_units, moved_others = 0.0, 0, 0.0
    for unit in removed:
        # Only microbatches of its width can change with it; the sums over the others are equal.
        with_it = np.array([i for i in range(units) if width_of(i) == width_of(unit)])
        whole = clipped(with_it)
        rest = clipped(with_it[with_it != unit])
        own = clipped(np.array([unit]))
        off = _distance(whole, rest)
        worst = max(worst, off / clip_norm)
        clipped_units += int(off > 0.99 * clip_norm)
        change = {name: whole.values[name] - rest.values[name] for name in whole.values}
        moved_others = max(moved_others, _norm_of(change, own.values) / clip_norm)
    everybody = clipped(np.arange(units))
    fewer = clipped(np.delete(np.arange(units), removed[0]))
    worst = max(worst, _distance(everybody, fewer) / clip_norm)
    shown = f"{worst:.7f} C, others moved {moved_others:.0e} C" + ("" if same else ", one by one")
    return Outcome(
        worst <= 1.0 and clipped_units > 0,
        shown,
        {
            "units": units,
            "removed": len(removed),
            "clipped": clipped_units,
            "largest_over_C": worst,
            "others_over_C": moved_others,
            "same_in_company": same,
            "counts": str(everybody.counts)[:60],
        },
    )


def _typical_norm(loss: CausalLmLoss, width: int, place: Place) -> float:
    gradients = per_example_gradients(loss, _random(loss, 4, width, place), Form.AUTO)
    return float(unit_norms(gradients).median())


def _distance(one: BoundedSum, other: BoundedSum) -> float:
    return _norm_of(one.values, other.values)


def _norm_of(one: Any, other: Any) -> float:
    squares = [float((one[key] - other[key]).double().square().sum()) for key in one]
    return math.sqrt(sum(squares))


def _synchronisation(place: Place) -> Outcome:
    """No wait for the device between a microbatch's forward pass and its clipped sum."""
    if not place.on_gpu:
        raise SkippedError("only a GPU can tell")
    return cases(
        {
            f"{method} {stage}": _case(place, _stage, method, stage, place)
            for method in ("lora", "full")
            for stage in ("gradients", "sum")
        }
    )


def _stage(method: Method, stage: str, place: Place) -> Outcome:
    loss = small_loss("llama", method, place.half(), place)
    batch = _random(loss, 8, 64, place)
    # What a first call sets up may wait.
    gradients = per_example_gradients(loss, batch, Form.AUTO)
    clip_and_sum(gradients, 0.1)
    if stage == "sum":
        gradients = per_example_gradients(loss, batch, Form.AUTO)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        if stage == "gradients":
            per_example_gradients(loss, batch, Form.AUTO)
        else:
            clip_and_sum(gradients, 0.1)
    except RuntimeError as error:
        if "synchron" not in str(error).lower():
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "taciturn" in frame.filename] or list(frames)
        last = own[-1]
        file = last.filename.rpartition("taciturn/")[2]
        return Outcome(False, f"{file}:{last.lineno} {last.line}"[:120], {"error": said(error)})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Outcome(True, "none")
