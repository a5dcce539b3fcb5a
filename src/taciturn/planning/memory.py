"""Memory that a run will need, from public facts alone; no model is loaded.

The engine counts the tensors of the very model (`engine/training/memory.py`); a gateway, which has
no torch, must choose a machine before there is one. So the architecture is guessed: a decoder of
the usual proportions with as many parameters. The estimate is meant to be too high rather than too
low; tests/planning/test_memory.py holds it against the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.planning.plan import AdapterPlan, TrainingPlan
from taciturn.spec import PerformanceSpec

_STATE_BYTES = 3 * 4 + 8  # master copy and two moments (fp32), the sum (float64)
_WIDTH_PER_LAYER = 100  # hidden size over number of layers: 64 (GPT-2) to 128 (Llama 7B)
_OUT, _IN = 10.3, 8.7  # a layer's matrices: sums of their outputs and inputs, in hidden sizes
_KEPT = 48  # values per token, layer and unit of hidden size that a backward pass keeps
_WEIGHT_BYTES = {"int8": 1.1, "nf4": 0.6}
_USUAL_TOKENS = 2048  # of a microbatch, where the spec doesn't say; a GPU may take more
_UNITS_PER_LENGTH = 4  # units may be this much shorter than max_tokens on average


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes on each device.

    Attributes:
        weights: the base model; processes that share it have a part of them each.
        state: master weights, moments and sum of what is trained.
        microbatch: activations and per-unit gradients of the largest microbatch.
        shared_state: full fine-tuning spreads its state over processes as well.
    """

    weights: float
    state: float
    microbatch: float
    shared_state: bool = False

    def on(self, processes: int) -> float:
        """Memory of each of so many processes that share the weights."""
        state = self.state / processes if self.shared_state else self.state
        return self.weights / processes + state + self.microbatch


@dataclass(frozen=True, slots=True)
class Proportions:
    """A decoder as it usually is."""

    width: float
    layers: float

    @classmethod
    def of(cls, parameters: int, vocabulary: int) -> Proportions:
        """Model that has so many parameters: 12 layers x width^2, and an embedding."""
        low, high = 8.0, 65_536.0
        for _ in range(60):
            middle = (low + high) / 2
            if 12 * middle**3 / _WIDTH_PER_LAYER + vocabulary * middle > parameters:
                high = middle
            else:
                low = middle
        return cls(low, max(1.0, low / _WIDTH_PER_LAYER))


def memory_need(
    parameters: int, vocabulary: int, plan: TrainingPlan, spec: PerformanceSpec, *, on_gpu: bool
) -> MemoryNeed:
    """Memory that a fit needs."""
    shape = Proportions.of(parameters, vocabulary)
    number = 2 if spec.dtype == "bfloat16" or (spec.dtype is None and on_gpu) else 4
    trained = trained_parameters(parameters, vocabulary, plan.adapter)
    tokens = max(spec.microbatch_tokens or _USUAL_TOKENS, plan.record_tokens)
    # What is left to the machine is what it can do with least: it takes more if it has more.
    again = on_gpu if spec.gradient_checkpointing is None else spec.gradient_checkpointing
    return MemoryNeed(
        weights=parameters * _WEIGHT_BYTES.get(spec.quantization or "", number),
        state=trained * _STATE_BYTES,
        microbatch=_activations(shape, tokens, number, again=again)
        + _logits(tokens, vocabulary)
        + _gradients(shape, tokens, trained, plan),
        shared_state=plan.adapter.method == "full",
    )


def reading_need(parameters: int, vocabulary: int, tokens: int, *, on_gpu: bool) -> MemoryNeed:
    """Memory of a model that writes or judges text: weights, and keys and values of `tokens`."""
    shape = Proportions.of(parameters, vocabulary)
    number = 2 if on_gpu else 4
    cached = 2 * shape.layers * shape.width * tokens * number
    return MemoryNeed(parameters * number, 0.0, cached + _logits(tokens, vocabulary))


def trained_parameters(parameters: int, vocabulary: int, adapter: AdapterPlan) -> float:
    """Approximate number of trained parameters."""
    if adapter.method == "full":
        return float(parameters)
    shape, rank = Proportions.of(parameters, vocabulary), adapter.r or 8
    sides = _OUT if adapter.fixed_a else _OUT + _IN
    head = (vocabulary + shape.width) * (adapter.head_r or 0)
    return shape.layers * shape.width * sides * rank + head


def _activations(shape: Proportions, tokens: int, number: int, *, again: bool) -> float:
    layer = _KEPT * shape.width * tokens * number
    if again:
        return layer + 2 * shape.width * tokens * number * shape.layers
    return layer * shape.layers


def _logits(tokens: int, vocabulary: int) -> float:
    """The loss is computed in chunks of rows: logits and their gradients, fp32."""
    return 3 * min(tokens, 1024) * vocabulary * 4


def _gradients(shape: Proportions, tokens: int, trained: float, plan: TrainingPlan) -> float:
    """Per-unit gradients: one of each unit, or their factors where that is less."""
    units = max(1.0, _UNITS_PER_LENGTH * tokens / plan.record_tokens)
    if plan.privacy is None:
        return trained * 4
    factors = (_IN + _OUT) * shape.width * shape.layers * tokens * 4 + trained * 4
    return min(units * trained * 4, factors)
