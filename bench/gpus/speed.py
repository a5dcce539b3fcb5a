"""Speed and memory of a training step at real shapes, side by side and in turn.

Every cell has one shape of model, one method and one length of records. All variants train the same
model on the same batches, in microbatches of the same size: a logical step has a few microbatches,
and that of 1,024 units is worked out from it, the parts that a step has once counted once.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from gpus.items import Item, Outcome, SkippedError, free, said
from gpus.models import (
    LLAMA_1B,
    LLAMA_8B,
    LLAMA_350M,
    Method,
    Place,
    Shape,
    as_product,
    lacks_kernel,
    large_model,
    real,
)
from gpus.recorded import GRAPHS, RecordedStep
from steps import registry
from steps.measure import interleave
from steps.registry import GHOST, HOOKS, ORDINARY, PLAIN, PRIVATE, TRAINER
from steps.variants import Gauge, Task, Variant
from steps.workload import Batch, Workload
from taciturn.engine.training.loop import STARTED_TOGETHER

OWN = (PLAIN, ORDINARY, PRIVATE, TRAINER)
OURS = (PLAIN, PRIVATE, GRAPHS)
SHORT = "T=128"
"""So few tokens that a GPU waits for its kernels: what recordings are for, and no goal."""
STEP_UNITS = 1024
_LEARNS_NOTHING: Any = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting.

    Attributes:
        shape, method: of the model, and what is trained of it.
        tokens: of each record.
        microbatch: sequences of one forward pass; halved until it fits.
        microbatches: of a logical step.
        variants: what is compared.
        checkpointing: whether activations are computed again.
        apart: whether each variant has a model of its own, as Opacus' hooks need.
        seconds: how long all of it takes, about; rounds are as many as there is time for.
    """

    shape: Shape
    method: Method
    tokens: int
    microbatch: int
    microbatches: int
    seconds: float
    variants: tuple[str, ...] = OWN
    checkpointing: bool = False
    apart: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        extra = ", opacus" if HOOKS in self.variants else ""
        return f"{self.shape.name} {self.method} T={self.tokens}{extra}"


CELLS = (
    Cell(LLAMA_1B, "lora", 512, 32, 2, 25, (*OWN, GRAPHS)),
    Cell(LLAMA_1B, "lora", 128, 4, 8, 12, OURS),
    Cell(LLAMA_350M, "full", 512, 16, 4, 22),
    Cell(LLAMA_8B, "lora", 2048, 4, 2, 38),
    Cell(LLAMA_350M, "full", 512, 8, 2, 20, (PLAIN, PRIVATE, HOOKS, GHOST), apart=True),
    Cell(LLAMA_1B, "lora", 2048, 8, 2, 22),
    Cell(LLAMA_350M, "full", 2048, 4, 4, 22),
    Cell(LLAMA_8B, "lora", 512, 16, 2, 35),
    Cell(LLAMA_8B, "nf4", 512, 16, 2, 35, (PLAIN, ORDINARY, PRIVATE)),
    Cell(LLAMA_350M, "full", 2048, 2, 2, 20, (PLAIN, PRIVATE, HOOKS, GHOST), apart=True),
    Cell(LLAMA_1B, "lora", 512, 8, 2, 20, (PLAIN, PRIVATE, HOOKS), apart=True),
)


@dataclass
class Speed:
    """All that was measured, for the table and the goals.

    Attributes:
        peak_flops: operations a second of a large product in bf16, here and now.
        rows: one for each cell and variant.
        others: figures of other items, by name.
    """

    peak_flops: float = math.nan
    rows: list[dict[str, Any]] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)

    def row(self, cell: str, variant: str) -> dict[str, Any] | None:
        """What was measured of one variant in one cell."""
        for row in self.rows:
            if row["cell"] == cell and row["variant"] == variant:
                return row
        return None


def items(place: Place, speed: Speed) -> list[Item]:
    """All measurements, the most important first."""
    measured = [
        Item(f"step {cell.name}", cell.seconds, partial(_cell, cell, place, speed), speed=True)
        for cell in CELLS
    ]
    return [
        Item("matrix peak", 3, partial(_peak, place, speed), speed=True),
        *measured[:5],
        Item("noise", 5, partial(_noise, place, speed), speed=True),
        Item("nf4 in 24 GB", 20, partial(_nf4_memory, place, speed), speed=True),
        Item("epoch of real lengths", 40, partial(_epoch, place, speed), speed=True),
        *measured[5:],
        *(
            Item(f"profile {cell.name}", 20, partial(_profile, cell, place), speed=True)
            for cell in (CELLS[0], *CELLS[2:4])
        ),
    ]


class AsProduct:
    """A variant that computes as the product does, with kernels that always give the same bits."""

    def __init__(self, inner: Any, place: Place) -> None:
        self.inner, self.place = inner, place
        self.lacks = ""

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        try:
            with as_product(self.place, wished=bool(self.lacks)):
                self.inner.run(batches, gauge)
            return
        except RuntimeError as error:
            if self.lacks or not lacks_kernel(error):
                raise
            self.lacks = said(error)
        with as_product(self.place, wished=True):
            self.inner.run(batches, gauge)


def make(name: str, model: Any, task: Task, place: Place) -> Any:
    """A variant on this model."""
    made = (RecordedStep if name == GRAPHS else registry.builder(name))(model, task)
    return AsProduct(made, place) if name in (PRIVATE, GRAPHS) else made


def clock(place: Place) -> Callable[[], float]:
    """Seconds, once all that was begun is done."""

    def seconds() -> float:
        if place.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    return seconds


def _peak(place: Place, speed: Speed) -> Outcome:
    """Operations a second of a product of two square matrices in bf16."""
    size = 128 if place.tiny else 8192
    one = torch.randn(size, size, device=place.device).to(place.half())
    other = torch.randn(size, size, device=place.device).to(place.half())
    now, seconds = clock(place), []
    for _ in range(12):
        start = now()
        for _ in range(4):
            one @ other
        seconds.append((now() - start) / 4)
    speed.peak_flops = 2 * size**3 / statistics.median(seconds[2:])
    name = torch.cuda.get_device_name() if place.on_gpu else "CPU"
    figures = {"flops": speed.peak_flops, "device": name}
    return Outcome(None, f"{speed.peak_flops / 1e12:.3g} TFLOP/s, {name}", figures)


def _cell(cell: Cell, place: Place, speed: Speed) -> Outcome:
    """Memory of each variant by itself, then time of all in turn."""
    name = cell.name
    if not place.on_gpu:
        own = tuple(variant for variant in cell.variants if variant != GRAPHS)
        cell = replace(cell, variants=own)
    if place.tiny:
        cell = replace(cell, tokens=12, microbatch=2)
    shape, microbatch = real(cell.shape, place), cell.microbatch
    while True:
        try:
            return _measured(replace(cell, shape=shape, microbatch=microbatch), name, place, speed)
        except torch.OutOfMemoryError:
            if microbatch == 1:
                raise
        # Outside of the handler, whose exception holds on to the tensors.
        free()
        microbatch //= 2


def _measured(cell: Cell, name: str, place: Place, speed: Speed) -> Outcome:
    sequences = cell.microbatch * cell.microbatches
    rounds, start = (1 if place.tiny else 5), time.monotonic()
    workload = Workload.random(
        [[cell.tokens] * sequences] * (rounds + 1), cell.shape.vocabulary, device=place.device
    )
    kind = "full" if cell.method == "full" else "lora"
    task = Task(kind, _LEARNS_NOTHING, workload, microbatch=cell.microbatch)  # type: ignore[arg-type]
    models = _Models(cell, place)
    failures: dict[str, str] = {}
    peaks: dict[str, dict[str, float]] = {}
    for variant in cell.variants:
        try:
            peaks[variant] = _memory(variant, models.of(variant), task, place)
        except torch.OutOfMemoryError as error:
            # Smaller microbatches for all, rather than a comparison without the two that count.
            if variant in (PLAIN, PRIVATE) and cell.microbatch > 1:
                raise
            failures[variant] = said(error)
        except Exception as error:
            failures[variant] = said(error)
        models.forget()
        free()
    predicted = _predicted(models.of(PRIVATE), cell, place) if PRIVATE in peaks else {}
    variants: dict[str, Variant] = {}
    for variant in peaks:
        try:
            variants[variant] = make(variant, models.of(variant), task, place)
        except Exception as error:
            failures[variant] = said(error)
    # One round to warm up, and as many as there is time for; the Trainer makes every step twice.
    of_round = sum(2 * each["seconds"] for each in peaks.values())
    left = cell.seconds - (time.monotonic() - start)
    rounds = max(1, min(rounds, int(left / max(of_round, 1e-9)) - 1))
    timings = interleave(variants, workload.blocks(1)[: rounds + 1], 1, clock=clock(place))
    failures |= timings.failures
    fixed = _fixed_seconds(variants, failures, place)
    parts = _parts(variants, failures, cell, place)
    variants.clear()
    rows = [
        _row(cell, name, variant, timings, peaks, fixed, speed)
        for variant in cell.variants
        if variant not in failures
    ]
    for variant, reason in failures.items():
        rows.append({"cell": name, "variant": variant, "failure": reason})
    speed.rows += rows
    details = {
        "rows": rows,
        "predicted": predicted,
        "parts": parts,
        "rounds": rounds,
        "microbatch": cell.microbatch,
        "tokens_of_microbatch": cell.microbatch * cell.tokens,
    }
    return Outcome(None, _told(cell, rows, predicted, failures, parts), details)


class _Models:
    """One model for all variants, or one for each where a variant hangs hooks into its own."""

    def __init__(self, cell: Cell, place: Place) -> None:
        self._cell, self._place = cell, place
        self._shared: Any = None

    def of(self, variant: str) -> Any:
        """The model that a variant trains."""
        if self._cell.apart:
            model = self._new()
            # Opacus wants it so; there is no dropout.
            return model.train() if variant in (HOOKS, GHOST) else model
        if self._shared is None:
            self._shared = self._new()
        return self._shared

    def forget(self) -> None:
        """Drop gradients that a variant has left behind."""
        if self._shared is not None:
            for value in self._shared.parameters():
                value.grad = None

    def _new(self) -> Any:
        cell = self._cell
        return large_model(cell.shape, cell.method, self._place, checkpointing=cell.checkpointing)


def _memory(variant: str, model: Any, task: Task, place: Place) -> dict[str, float]:
    """Bytes in use at most in a step that is not the first, and before it."""
    made = make(variant, model, task, place)
    batches = task.workload.batches
    made.run(batches[:1], nullcontext())
    free()
    before = torch.cuda.memory_allocated() if place.on_gpu else 0
    if place.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    now = clock(place)
    start = now()
    made.run(batches[:1], nullcontext())
    seconds = now() - start
    if not place.on_gpu:
        return {"peak": math.nan, "before": math.nan, "seconds": seconds}
    # What kernels of a recording use between them counts as free, and nobody else gets it.
    most = torch.cuda.max_memory_reserved if variant == GRAPHS else torch.cuda.max_memory_allocated
    return {
        "seconds": seconds,
        "peak": float(most()),
        "before": float(before),
        "reserved": float(torch.cuda.max_memory_reserved()),
    }


def _predicted(model: Any, cell: Cell, place: Place) -> dict[str, Any]:
    """The product's own estimate of a microbatch of this size."""
    from taciturn.engine.model.loss import CausalLmLoss
    from taciturn.engine.privacy.forms import Form
    from taciturn.engine.training.memory import memory_estimate, random_batch

    try:
        device, loss = torch.device(place.device), CausalLmLoss(model)
        few, many = max(1, cell.microbatch // 4), max(2, cell.microbatch // 2)
        vocabulary = cell.shape.vocabulary
        small, large = (random_batch(vocabulary, n, cell.tokens, device) for n in (few, many))
        tokens = cell.tokens * cell.microbatch
        with as_product(place):
            estimate = memory_estimate(loss, small, large, tokens, Form.AUTO, private=True)
        figures = {
            "total": estimate.total,
            "weights": estimate.weights,
            "state": estimate.state,
            "microbatch": estimate.microbatch,
        }
        if importlib.util.find_spec("taciturn.engine.training.microbatch") and place.on_gpu:
            free()
            figures |= _chosen(loss, cell, place)
        return figures
    except Exception as error:
        return {"failure": said(error)}


def _chosen(loss: Any, cell: Cell, place: Place) -> dict[str, Any]:
    """What the product would take here: tokens of a microbatch, and whether it recomputes."""
    try:
        module: Any = importlib.import_module("taciturn.engine.training.microbatch")
        from taciturn.spec import FitSpec

        spec = FitSpec(target_epsilon=4.0)
        with as_product(place):
            tokens = module.fitting_tokens(loss, spec, cell.shape.vocabulary, cell.tokens)
        return {"tokens_chosen": tokens}
    except Exception as error:
        return {"choice": said(error)}


def _fixed_seconds(
    variants: dict[str, Variant], failures: dict[str, str], place: Place
) -> dict[str, dict[str, float]]:
    """Seconds that a step has once, whatever its number of units: noise, and the update."""
    figures: dict[str, dict[str, float]] = {}
    for name, work in (
        (PRIVATE, _fixed_private),
        (GRAPHS, _fixed_private),
        (PLAIN, _fixed_plain),
    ):
        if name in variants and name not in failures:
            try:
                figures[name] = work(variants[name], place)
            except Exception as error:
                failures[f"{name} fixed"] = said(error)
            free()
    return figures


def _fixed_plain(variant: Any, place: Place) -> dict[str, float]:
    """The optimiser's step; weights are random anyway."""
    optimizer, now, seconds = variant._optimizer, clock(place), []
    for group in optimizer.param_groups:
        for value in group["params"]:
            value.grad = torch.zeros_like(value)
    for _ in range(4):
        start = now()
        optimizer.step()
        seconds.append(now() - start)
    optimizer.zero_grad(set_to_none=True)
    return {"update": statistics.median(seconds[1:])}


def _fixed_private(variant: Any, place: Place) -> dict[str, float]:
    """Noise, and what the state does with the noised sum."""
    from taciturn.engine.privacy.clipping import empty_sum

    inner = getattr(variant, "inner", variant)
    with as_product(place):
        mechanism, state = inner._mechanism, inner._state
        total = empty_sum(state.parameters, mechanism.l2_clip_norm)
        now, noise, update = clock(place), [], []
        for _ in range(4):
            start = now()
            private = mechanism.add_noise(total, inner._streams.noise)
            middle = now()
            state.apply(private)
            noise.append(middle - start)
            update.append(now() - middle)
    return {"noise": statistics.median(noise[1:]), "update": statistics.median(update[1:])}


def _parts(
    variants: dict[str, Variant], failures: dict[str, str], cell: Cell, place: Place
) -> dict[str, Any]:
    """Seconds of the two parts of a private microbatch, and of one with next to nothing in it."""
    variant: Any = variants.get(PRIVATE)
    if variant is None or PRIVATE in failures:
        return {}
    from taciturn.engine.privacy.clipping import clip_and_sum
    from taciturn.engine.privacy.forms import Form
    from taciturn.engine.privacy.per_example import per_example_gradients
    from taciturn.engine.training.memory import random_batch

    try:
        loss, device, now = variant.inner._loss, torch.device(place.device), clock(place)
        seconds: dict[str, list[float]] = {}
        for name, units, width in (
            ("full", cell.microbatch, cell.tokens),
            ("small", 4, 16),
        ):
            batch = random_batch(cell.shape.vocabulary, units, width, device)
            for _ in range(4):
                with as_product(place, wished=bool(variant.lacks)):
                    start = now()
                    gradients = per_example_gradients(loss, batch, Form.AUTO)
                    middle = now()
                    clip_and_sum(gradients, 1.0)
                    end = now()
                del gradients
                seconds.setdefault(f"{name} gradients", []).append(middle - start)
                seconds.setdefault(f"{name} clipped sum", []).append(end - middle)
        figures: dict[str, Any] = {
            name: statistics.median(each[1:]) for name, each in seconds.items()
        }
        small = figures["small gradients"] + figures["small clipped sum"]
        figures["small, of a layer"] = small / cell.shape.layers
        if variant.lacks:
            figures["lacks"] = variant.lacks
        return figures
    except Exception as error:
        return {"failure": said(error)}


def _row(
    cell: Cell,
    name: str,
    variant: str,
    timings: Any,
    peaks: dict[str, dict[str, float]],
    fixed: dict[str, dict[str, float]],
    speed: Speed,
) -> dict[str, Any]:
    seconds = timings.spread(variant)
    sequences = cell.microbatch * cell.microbatches
    once = sum(fixed.get(variant, {}).values())
    of_microbatches = max(0.0, seconds.median - once)
    whole = of_microbatches * STEP_UNITS / sequences + once
    flops = cell.shape.flops(cell.tokens, sequences, cell.method)
    row: dict[str, Any] = {
        "cell": name,
        "variant": variant,
        "microbatch": cell.microbatch,
        "sequences": sequences,
        "seconds": seconds.median,
        "all_seconds": timings.seconds[variant],
        "tokens_per_second": sequences * cell.tokens / seconds.median,
        "share_of_peak": flops / seconds.median / speed.peak_flops,
        "peak_bytes": peaks[variant]["peak"],
        "seconds_of_1024": whole,
        "fixed_seconds": fixed.get(variant, {}),
        "share_of_peak_of_1024": flops * STEP_UNITS / sequences / whole / speed.peak_flops,
    }
    if variant == PRIVATE:
        row["noise_share_of_1024"] = fixed.get(PRIVATE, {}).get("noise", math.nan) / whole
    if PLAIN in timings.seconds:
        row["ratio"] = timings.ratio(variant, PLAIN).median
        of_plain = sum(fixed.get(PLAIN, {}).values())
        plain = (timings.spread(PLAIN).median - of_plain) * STEP_UNITS / sequences + of_plain
        row["ratio_of_1024"] = whole / plain
        row["memory_ratio"] = peaks[variant]["peak"] / peaks[PLAIN]["peak"]
    return row


def _told(
    cell: Cell,
    rows: list[dict[str, Any]],
    predicted: dict[str, Any],
    failures: dict[str, str],
    parts_of_private: dict[str, Any],
) -> str:
    parts = [f"B {cell.microbatch}"]
    for row in rows:
        if "failure" in row:
            continue
        parts.append(f"{row['variant']} {row['tokens_per_second'] / 1e3:.3g}k")
    own = next((row for row in rows if row["variant"] == PRIVATE and "ratio" in row), None)
    if own is not None:
        parts.append(
            f"of 1024 {own['ratio_of_1024']:.3f}, memory {own['memory_ratio']:.3f} "
            f"({own['peak_bytes'] / 1e9:.3g} GB)"
        )
    if "full gradients" in parts_of_private:
        gradients, clipped = (
            1e3 * parts_of_private[f"full {part}"] for part in ("gradients", "clipped sum")
        )
        parts.append(f"{gradients:.3g} + {clipped:.3g} ms")
    if "total" in predicted:
        parts.append(f"predicted {predicted['total'] / 1e9:.3g} GB")
    parts += [f"{name} failed: {reason[:60]}" for name, reason in failures.items()]
    return "; ".join(parts)


def _profile(cell: Cell, place: Place) -> Outcome:
    """Kernels that take most of a private microbatch's time, and of a plain one's."""
    if not place.on_gpu:
        raise SkippedError("only a GPU has kernels")
    from torch.profiler import ProfilerActivity, profile

    tokens, size = cell.tokens, max(1, cell.microbatch // 2)
    workload = Workload.random([[tokens] * size] * 2, cell.shape.vocabulary, device=place.device)
    kind = "full" if cell.method == "full" else "lora"
    task = Task(kind, _LEARNS_NOTHING, workload, microbatch=size)  # type: ignore[arg-type]
    model = large_model(cell.shape, cell.method, place)
    figures: dict[str, Any] = {}
    for name in (PLAIN, PRIVATE):
        variant = make(name, model, task, place)
        variant.run(workload.batches[:1], nullcontext())
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            variant.run(workload.batches[1:], nullcontext())
            torch.cuda.synchronize()
        rows = [
            (str(event.key)[:90], float(event.self_device_time_total) / 1e3, int(event.count))
            for event in profiler.key_averages()
            # Operations of the host that launched them stand beside the kernels.
            if "CPU" not in str(event.device_type)
        ]
        rows.sort(key=lambda row: -row[1])
        figures[name] = {"ms": sum(row[1] for row in rows), "top": rows[:25]}
        del variant, profiler
        model.zero_grad(set_to_none=True)
        free()
    told = "; ".join(
        f"{name} {each['ms']:.3g} ms: "
        + ", ".join(f"{row[0][:24]} {row[1]:.2g}" for row in each["top"][:2])
        for name, each in figures.items()
    )
    return Outcome(None, told, figures)


def _noise(place: Place, speed: Speed) -> Outcome:
    """Noise of as many values as a LoRA of 1B and 8B, and a full fit of 350M and 1B, have."""
    from taciturn.engine.privacy import noise
    from taciturn.engine.privacy.clipping import empty_sum
    from taciturn.engine.privacy.rng import SecureStream

    sizes = {"11M": 11_000_000, "42M": 42_000_000, "350M": 350_000_000, "1.2B": 1_236_000_000}
    if place.tiny:
        sizes = {"10k": 10_000}
    figures, now, stream = {}, clock(place), SecureStream.fresh()
    for name, size in sizes.items():
        try:
            total = empty_sum({"w": torch.empty(size, device=place.device)}, 1.0)
            seconds = []
            for _ in range(3):
                start = now()
                noise.add_noise(total, 1.0, 1024.0, stream)
                seconds.append(now() - start)
            figures[name] = min(seconds)
            del total
        except torch.OutOfMemoryError:
            figures[name] = math.nan
        free()
    speed.others["noise_seconds"] = figures
    told = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in figures.items())
    return Outcome(None, told, figures)


def _nf4_memory(place: Place, speed: Speed) -> Outcome:
    """Peak of a private step of a 7B or 8B base in nf4 with LoRA, T = 512."""
    from steps.variants import PrivateStep

    shape, tokens = real(LLAMA_8B, place), 16 if place.tiny else 512
    figures: dict[str, Any] = {}
    for name, microbatch, checkpointing in (
        ("checkpointed, 2048 tokens", 4, True),
        ("512 tokens", 1, False),
    ):
        try:
            model: Any = large_model(shape, "nf4", place, checkpointing=checkpointing)
            workload = Workload.random([[tokens] * (2 * microbatch)] * 2, shape.vocabulary)
            task = Task("lora", _LEARNS_NOTHING, workload, microbatch=microbatch)
            free()
            if place.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            step: Any = AsProduct(PrivateStep(model, task), place)
            step.run(workload.batches[:1], nullcontext())
            now = clock(place)
            start = now()
            step.run(workload.batches[1:], nullcontext())
            seconds = now() - start
            peak = float(torch.cuda.max_memory_allocated()) if place.on_gpu else math.nan
            figures[name] = {"peak": peak, "seconds_of_a_unit": seconds / (2 * microbatch)}
        except SkippedError:
            raise
        except Exception as error:
            figures[name] = {"failure": said(error)}
        finally:
            step, model = None, None
        free()
    speed.others["nf4"] = figures
    peaks = [each["peak"] for each in figures.values() if "peak" in each]
    told = "; ".join(
        f"{name}: {each['peak'] / 1e9:.1f} GB" if "peak" in each else f"{name}: {each['failure']}"
        for name, each in figures.items()
    )
    if not place.on_gpu:
        return Outcome(None if peaks else False, told, figures)
    return Outcome(bool(peaks) and min(peaks) < 24e9, told, figures)


def _lengths(count: int, longest: int, seed: int) -> list[int]:
    """Log-normal lengths of records, as notes have them; none longer than `longest`."""
    random = np.random.default_rng(seed)
    drawn = np.exp(random.normal(np.log(0.18 * longest), 0.8, count))
    return [int(length) for length in np.clip(drawn, 12, longest)]


def _epoch(place: Place, speed: Speed) -> Outcome:
    """The same records once: the Trainer in batches of 16, ours in one draw of 1,024."""
    shape = real(LLAMA_1B, place)
    records, batch, draw, longest = (32, 8, 32, 64) if place.tiny else (1024, 16, 1024, 1024)
    lengths = _lengths(records, longest, 1)
    model = large_model(shape, "lora", place)
    made: dict[str, Any] = {}
    failures: dict[str, str] = {}
    sizes = [(TRAINER, batch), (PLAIN, batch), (PRIVATE, draw)]
    sizes += [(GRAPHS, draw)] if place.on_gpu else []
    for name, size in sizes:
        rows = [lengths[start : start + size] for start in range(0, records, size)]
        workload = Workload.random(rows, shape.vocabulary, device=place.device)
        task = Task("lora", _LEARNS_NOTHING, workload, max_tokens=longest)
        if name in (PRIVATE, GRAPHS):
            tokens = 16 * longest
            limits = _product_limits(model, draw, longest, tokens, recorded=name == GRAPHS)
            task = _WithLimits("lora", _LEARNS_NOTHING, workload, max_tokens=longest, chosen=limits)
        try:
            made[name] = (make(name, model, task, place), workload.batches)
        except Exception as error:
            failures[name] = said(error)
    now = clock(place)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for attempt in range(1 if place.tiny else 3):
        for name, (variant, batches) in made.items():
            if name in failures:
                continue
            try:
                watch = _Watch(now)
                variant.run(batches, watch)
                if attempt or place.tiny:
                    seconds[name].append(watch.seconds)
            except Exception as error:
                failures[name] = said(error)
            model.zero_grad(set_to_none=True)
            free()
    medians = {name: statistics.median(each) for name, each in seconds.items() if each}
    figures: dict[str, Any] = {"seconds": medians, "tokens": sum(lengths), "failures": failures}
    if TRAINER in medians and PRIVATE in medians:
        figures["ratio"] = medians[PRIVATE] / medians[TRAINER]
    speed.others["epoch"] = figures
    told = ", ".join(f"{name} {each:.2f} s" for name, each in medians.items())
    told += f"; ours/Trainer {figures['ratio']:.3f}" if "ratio" in figures else ""
    told += "".join(f"; {name} failed: {reason[:80]}" for name, reason in failures.items())
    return Outcome(None if medians else False, told, figures)


@dataclass(frozen=True)
class _WithLimits(Task):
    """A task whose microbatches are as the product would make them here."""

    chosen: Any = None

    @property
    def limits(self) -> Any:
        """See Task."""
        return self.chosen


def _product_limits(model: Any, units: int, longest: int, tokens: int, *, recorded: bool) -> Any:
    """Limits of microbatches of at most so many tokens, in a draw of this expected size."""
    from taciturn.engine.training import batch, memory

    widths: Any = getattr(batch, "width_steps", None)
    own: Any = memory
    if widths is None:
        return batch.BatchLimits(tokens, batch.filled_units(units, longest), longest)
    free_tokens = own.free_tokens(model) // (STARTED_TOGETHER if recorded else 1)
    steps = widths(units, longest, free_tokens)
    filled: Any = batch.filled_units
    limits: Any = batch.BatchLimits
    places = filled(units, longest, steps)
    return limits(tokens, own.gradient_units(model), longest, places, free_tokens, steps)


class _Watch:
    """A gauge of time by any clock."""

    seconds = math.nan

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def __enter__(self) -> _Watch:
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self._now() - self._start


def goals(speed: Speed) -> Iterator[tuple[str, str, str, bool | None]]:
    """What is hoped for, the goal, what was measured, and whether it is met; None: not measured."""
    for shape in (LLAMA_1B, LLAMA_8B):
        rows = [
            row
            for row in speed.rows
            if row["variant"] == PRIVATE
            and row["cell"].startswith(f"{shape.name} lora")
            and not any(word in row["cell"] for word in ("opacus", SHORT))
        ]
        yield _most(f"{shape.name} LoRA, time of 1,024 units / plain", 1.05, rows, "ratio_of_1024")
        yield _most(f"{shape.name} LoRA, peak memory / plain", 1.10, rows, "memory_ratio")
        yield _most(f"{shape.name} LoRA, noise / step", 0.02, rows, "noise_share_of_1024")
    rows = [
        row
        for row in speed.rows
        if row["variant"] == PRIVATE
        and row["cell"].startswith("350M full")
        and "opacus" not in row["cell"]
    ]
    yield _most("350M full, time of 1,024 units / plain", 1.15, rows, "ratio_of_1024")
    yield _most("350M full, noise / step", 0.05, rows, "noise_share_of_1024")
    row = speed.row("8B lora T=2048", PRIVATE)
    share = None if row is None else row.get("share_of_peak_of_1024")
    yield (
        "8B LoRA, T = 2048: share of the matrix peak",
        ">= 0.45",
        _number(share),
        None if share is None else bool(share >= 0.45),
    )
    yield _against_opacus(speed)
    ratio = speed.others.get("epoch", {}).get("ratio")
    yield (
        "epoch of real lengths / Trainer",
        "<= 1.00",
        _number(ratio),
        None if ratio is None else bool(ratio <= 1.0),
    )


def _most(
    what: str, bound: float, rows: list[dict[str, Any]], key: str
) -> tuple[str, str, str, bool | None]:
    values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
    if not values:
        return what, f"<= {bound:.2f}", "-", None
    told = ", ".join(f"{value:.3f}" for value in values)
    return what, f"<= {bound:.2f}", told, max(values) <= bound


def _against_opacus(speed: Speed) -> tuple[str, str, str, bool | None]:
    ratios = []
    for cell in {row["cell"] for row in speed.rows if "full" in row["cell"]}:
        own = speed.row(cell, PRIVATE)
        others = [speed.row(cell, name) for name in (HOOKS, GHOST)]
        times = [row["seconds"] for row in others if row is not None and "seconds" in row]
        if own is not None and "seconds" in own and times:
            ratios.append(min(times) / own["seconds"])
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios) or "-"
    met = min(ratios) >= 2.0 if ratios else None
    return "full: Opacus' fastest mode / ours", ">= 2.00", told, met


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(speed: Speed) -> str:
    """One row for each cell and variant, in Markdown."""
    lines = [
        "| step | variant | tokens/s | of peak | GB | time/plain | of 1,024 units | s of 1,024 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in speed.rows:
        if "failure" in row:
            lines.append(f"| {row['cell']} | {row['variant']} | {row['failure'][:60]} | | | | | |")
            continue
        lines.append(
            f"| {row['cell']} | {row['variant']} | {row['tokens_per_second']:,.0f} | "
            f"{row['share_of_peak']:.2f} | {row['peak_bytes'] / 1e9:.1f} | "
            f"{row.get('ratio', math.nan):.3f} | {row.get('ratio_of_1024', math.nan):.3f} | "
            f"{row['seconds_of_1024']:.1f} |"
        )
    return "\n".join(lines)
